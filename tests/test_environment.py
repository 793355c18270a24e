"""Settings of the process that exist before Paddle is imported."""

import gc
import subprocess
import sys
from pathlib import Path

import pytest

from plsc import environment
from plsc.environment import _uncollected, mkl_cpu_type

AVX512 = "avx512f avx512dq avx512cd avx512bw avx512vl"


@pytest.mark.parametrize(
    ("vendor", "flags", "kernels"),
    [
        ("AuthenticAMD", f"fpu avx2 {AVX512}", "9"),
        ("AuthenticAMD", "fpu avx2", "5"),
        ("AuthenticAMD", "fpu avx2 avx512f avx512dq avx512bw", "5"),  # avx512vl is missing
        ("GenuineIntel", f"fpu avx2 {AVX512}", None),
    ],
)
def test_kernels_of_the_matrix_library(vendor, flags, kernels):
    processor = f"vendor_id\t: {vendor}\nmodel name\t: any\nflags\t\t: {flags}\n"
    assert mkl_cpu_type(processor * 2) == kernels


def test_kernels_of_the_matrix_library_without_cpuinfo():
    assert mkl_cpu_type("AMD64 Family 25 Model 17") == "5"
    assert mkl_cpu_type("arm") is None


@pytest.mark.parametrize("collects", [True, False])
def test_garbage_is_collected_after_an_import_as_before(collects):
    before = gc.isenabled()
    try:
        (gc.enable if collects else gc.disable)()
        with pytest.raises(ImportError), _uncollected():
            assert not gc.isenabled()
            raise ImportError
        assert gc.isenabled() is collects
    finally:
        (gc.enable if before else gc.disable)()


@pytest.mark.parametrize("command", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
def test_what_is_imported_is_not_searched_as_new(frozen, command, monkeypatch):
    """It is old, in a command out of sight, and what the program has frozen stays so."""
    monkeypatch.setattr(environment, "is_command", command)
    assert gc.get_freeze_count() == 0
    kept: list[list] = []
    try:
        if frozen:
            gc.freeze()
        count = gc.get_freeze_count()
        with _uncollected():
            kept += [[] for _ in range(1000)]
        identities = set(map(id, kept))
        ages = [sum(id(o) in identities for o in gc.get_objects(generation=g)) for g in range(3)]
        if command:
            assert ages == [0, 0, 0] and gc.get_freeze_count() > count
        else:
            assert gc.get_freeze_count() == count
            assert frozen or ages == [0, 0, 1000]
    finally:
        gc.unfreeze()


HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
WRITES = """
import ctypes, re, resource
from pathlib import Path
from plsc import environment
if {limit}:
    resource.setrlimit(resource.RLIMIT_AS, ({limit}, {limit}))
environment.use_huge_pages(2)
libc = environment._glibc()
held = [libc.malloc(40 << 20) for _ in range(3)]
for block in held:
    ctypes.memset(block, 1, 40 << 20)
memory = Path("/proc/self/smaps_rollup").read_text()
print(*(int(re.search(name + r": *(\\d+) kB", memory)[1]) // 1024 for name in ("AnonHugePages", "Rss")))
"""


def _written(limit: int) -> tuple[int, int]:
    """MiB in huge pages, and of memory altogether, after 120 MiB were written."""
    done = subprocess.run([sys.executable, "-c", WRITES.format(limit=limit)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    huge, held = map(int, done.stdout.split())
    return huge, held


@pytest.mark.skipif(
    not HUGE_PAGES.is_file() or not environment._addresses_are_free(), reason="huge pages are not asked for here"
)
def test_memory_of_the_heap_comes_in_huge_pages():
    if "[never]" in HUGE_PAGES.read_text():
        pytest.skip("huge pages are switched off on this system")
    huge, held = _written(limit=0)
    assert huge >= 100 and held < 200  # the two GiB are addresses alone


AGAIN = """
from plsc import environment
libc = environment._glibc()
environment.keep_freed_memory()
environment.use_huge_pages(2)
end = libc.sbrk(0)
environment.keep_freed_memory()
libc.free(libc.malloc(40 << 20))
assert libc.sbrk(0) == end
"""


@pytest.mark.skipif(
    not HUGE_PAGES.is_file() or not environment._addresses_are_free(), reason="huge pages are not asked for here"
)
def test_the_heap_stays_when_a_device_is_chosen_again():
    done = subprocess.run([sys.executable, "-c", AGAIN], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


ROOM = """
import mmap, resource
from plsc import environment
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
environment.use_huge_pages(2)
mmap.mmap(-1, 2 << 30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit is Linux's")
def test_a_process_with_few_addresses_keeps_them():
    huge, held = _written(limit=600 << 20)
    assert huge == 0 and held >= 120
    done = subprocess.run([sys.executable, "-c", ROOM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the files are Linux's")
@pytest.mark.parametrize(
    ("overcommit", "page", "free"),
    [("0", 2 << 20, True), ("1", 2 << 20, True), ("2", 2 << 20, False), ("0", 512 << 20, False), ("0", None, False)],
)
def test_where_a_large_heap_costs_nothing(tmp_path, monkeypatch, overcommit, page, free):
    monkeypatch.setattr("resource.getrlimit", lambda kind: (-1, -1))  # none
    files = {"proc/sys/vm/overcommit_memory": overcommit, "sys/kernel/mm/transparent_hugepage/hpage_pmd_size": page}
    for name, value in files.items():
        (tmp_path / name).parent.mkdir(parents=True)
        if value is not None:
            (tmp_path / name).write_text(f"{value}\n")
    assert environment._addresses_are_free(tmp_path) is free


class _Libc:
    """Takes sizes up to a limit, as glibc's mallopt before 2.35."""

    def __init__(self, most: int):
        self.most, self.options, self.blocks = most, {}, []

    def mallopt(self, option: int, value: int) -> int:
        if option == environment._M_MMAP_THRESHOLD and value > self.most:
            return 0
        self.options[option] = value
        return 1

    def malloc(self, size: int) -> None:
        self.blocks.append(size)

    def sbrk(self, more: int) -> int:
        return 0

    def free(self, block: None) -> None:
        pass


@pytest.mark.parametrize(("most", "size"), [(2**40, 2**30), (2**25, 2**25), (2**19, None)])
def test_the_largest_size_that_glibc_takes(monkeypatch, most, size):
    libc = _Libc(most)
    monkeypatch.setattr(environment, "_glibc", lambda: libc)
    monkeypatch.setattr(environment, "_addresses_are_free", lambda: True)
    environment.keep_freed_memory.__wrapped__()
    assert libc.options == ({} if size is None else {-3: size, -1: 2**30})
    environment.use_huge_pages.__wrapped__(2)
    assert libc.options == ({} if size is None else {-3: size, -1: -1})
    assert all(block < size for block in libc.blocks)
    assert len(libc.blocks) == (0 if size is None else 2**31 // size)
