"""Process settings that must exist before Paddle is imported. Imports no Paddle.

Each setting is here because of a measurement or a crash; the comments give it.
"""

import _thread
import contextlib
import ctypes
import functools
import gc
import io
import logging
import os
import platform
import signal
import stat
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from plsc.errors import DeviceError

INSTALL_PAGE = "https://www.paddlepaddle.org.cn/en/install/quick"

# What to install for a device that the present Paddle lacks.
PACKAGES = {
    "cpu": "pip install paddlepaddle",
    "gpu": f"paddlepaddle-gpu of your CUDA version, from Paddle's installation page {INSTALL_PAGE} "
    "(the newest on PyPI is 2.6.2 for CUDA 11.8, which cannot run on Hopper)",
    "xpu": f"paddlepaddle-xpu, from Paddle's installation page {INSTALL_PAGE}",
    "npu": f"paddle-custom-npu beside paddlepaddle, from Paddle's installation page {INSTALL_PAGE}",
}


EXECUTOR_FLAGS = (
    # Paddle 3's executor otherwise draws random numbers in an order that changes from run to run
    "FLAGS_new_executor_sequential_run",
    # its threads otherwise spin while they wait: a third of the processor time of a compiled step
    "FLAGS_new_executor_serial_run",
)

# whether the process is one of plsc's commands, and ends after it
is_command = False

# the rank, in a variable that paddle.distributed.launch sets, and scripts that start processes without it do not
_LAUNCHERS_OWN = "PADDLE_GLOBAL_RANK"


def how_to_install(device: str) -> str:
    """The line that brings a Paddle for `device`."""
    kind = device.split(":")[0]
    return PACKAGES.get(kind, f"the plug-in paddle-custom-{kind} beside paddlepaddle, see {INSTALL_PAGE}")


def launched() -> bool:
    """Whether paddle.distributed.launch started this process."""
    return "PADDLE_TRAINERS_NUM" in os.environ and "PADDLE_TRAINER_ID" in os.environ


def rank() -> int:
    return int(os.environ.get("PADDLE_TRAINER_ID", 0))


def world_size() -> int:
    return int(os.environ.get("PADDLE_TRAINERS_NUM", 1))


def master() -> tuple[str, int]:
    """Host and port at which the first process of several keeps Paddle's key-value store."""
    address = os.environ.get("PADDLE_MASTER") or os.environ["PADDLE_TRAINER_ENDPOINTS"].split(",")[0]
    host, _, port = address.rpartition(":")
    return host, int(port)


def local_size() -> int:
    """Processes of this run on this machine."""
    return max(1, int(os.environ.get("PADDLE_LOCAL_SIZE", 1)))


def available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_limit(root: Path = Path("/")) -> int | None:
    """Bytes of main memory that all processes here can have at most, fewer in a container; None if unknown.

    Swap is not counted: a run reads and writes most of its memory in each update, which no disk does in useful time.

    Args:
        root: where proc and sys are.
    """
    amounts = _amounts(root / "proc" / "meminfo")
    if "MemTotal" not in amounts:
        return None
    return min([amounts["MemTotal"], *_group_limits(root)])


def process_memory(name: str) -> int | None:
    """Bytes of this process by Linux's name for them: VmRSS at present, VmHWM at most; None where that is unknown."""
    return _amounts(Path("/proc/self/status")).get(name)


def _group_limits(root: Path) -> Iterator[int]:
    """The limits of the control groups that this process is in, of version 1 and 2, and of the groups above them."""
    mount = root / "sys" / "fs" / "cgroup"
    for line in _lines(root / "proc" / "self" / "cgroup"):
        _, controllers, path = line.split(":", 2)
        if not controllers:
            top, name = mount, "memory.max"
        elif "memory" in controllers.split(","):
            top, name = mount / "memory", "memory.limit_in_bytes"
        else:
            continue
        folder = top / path.lstrip("/")  # in a container its own group is the top, whatever the path says
        for place in (folder, *folder.parents[: len(folder.parts) - len(top.parts)]):
            value = "".join(_lines(place / name))
            if value.isdecimal():  # not "max"
                yield int(value)


def _amounts(file: Path) -> dict[str, int]:
    """Name → bytes of the amounts in kB of /proc/meminfo or a process's status."""
    pairs = (line.split(":", 1) for line in _lines(file) if line.endswith(" kB"))
    return {name: int(value.removesuffix("kB")) * 1024 for name, value in pairs}


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def mkl_cpu_type(cpuinfo: str) -> str | None:
    """The kernels that Paddle's matrix library (MKLML) should take: a value of MKL_DEBUG_CPU_TYPE.

    On AMD it picks its slowest kernels by itself. Type 5 is AVX2, type 9 AVX-512; type 9 crashes on a processor
    that lacks one of the four instruction sets below.

    Args:
        cpuinfo: the text of /proc/cpuinfo, or where there is none the name of the processor.

    Returns:
        None where the library's own choice is right, as on Intel.
    """
    if "AMD" not in cpuinfo:
        return None
    flags = next((line.split() for line in cpuinfo.splitlines() if line.startswith("flags")), [])
    return "9" if {"avx512f", "avx512dq", "avx512bw", "avx512vl"} <= set(flags) else "5"


def _cpuinfo() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return file.read()
    except OSError:
        return platform.processor()


def thread_count(requested: int | None = None) -> int:
    """Threads for one process: as asked, else OMP_NUM_THREADS, else cores ÷ local processes.

    paddle.distributed.launch always writes OMP_NUM_THREADS=1, so under it 1 counts as unset.
    """
    if requested:
        return requested
    value = os.environ.get("OMP_NUM_THREADS", "")
    if value.isdigit() and int(value) > 0 and not (launched() and value == "1"):
        return int(value)
    return max(1, available_cores() // local_size())


def prepare(*, cpu_threads: int | None = None) -> None:
    """Set the process up for Paddle; call before the first `import paddle`, after which it changes nothing.

    Args:
        cpu_threads: as in Global.cpu_threads; None means cores ÷ local processes.

    Raises:
        DeviceError: a system library that Paddle needs is missing.
    """
    die_with_launcher()
    if "paddle" in sys.modules:
        return
    os.environ["OMP_NUM_THREADS"] = str(thread_count(cpu_threads))
    if cpu_type := mkl_cpu_type(_cpuinfo()):
        os.environ.setdefault("MKL_DEBUG_CPU_TYPE", cpu_type)
    for name in EXECUTOR_FLAGS:
        os.environ.setdefault(name, "1")
    os.environ.setdefault("GLOG_minloglevel", "2")
    require_system_libraries()


class Terminated(BaseException):
    """SIGTERM, on its way to the end of a command; what is being written is cleaned up."""


def die_with_parent(parent: int, signal_number: int = signal.SIGKILL) -> None:
    """Ask Linux to end this process with its parent, so that nothing outlives a killed run.

    Args:
        parent: the parent's process id, learnt before it can have ended: where this process has another parent by
            now, it ends at once.
    """
    if sys.platform.startswith("linux"):
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal_number), 0, 0, 0)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal_number)


def die_with_launcher() -> None:
    """Under the launcher: end with it. To be called first thing, before imports that take a while.

    A launcher that was killed before this call has left the process to another parent, which ends it here.
    A script that sets the PADDLE_ variables of several processes itself may end before them.
    """
    if _LAUNCHERS_OWN not in os.environ:
        return
    parent = os.getppid()
    if _adopted_by(parent):
        print("the launcher has ended: so does this process, before it begins", file=sys.stderr, flush=True)
        os._exit(128 + signal.SIGKILL)
    die_with_parent(parent)


def _adopted_by(parent: int) -> bool:
    """Whether a process that the launcher started now belongs to the system's.

    A launcher is a Python program; a script between it and this process has the same rank in its environment. Of a
    parent whose environment cannot be read, such as another user's sudo, only process 1 is the system's for certain.
    """
    try:
        with open(f"/proc/{parent}/cmdline", "rb") as file:
            command = file.read()
    except OSError:  # no Linux, or another user's process, which a launcher hardly is
        return parent == 1
    if any(word in command for word in (b"python", b"launch", b"fleetrun")):
        return False
    try:
        with open(f"/proc/{parent}/environ", "rb") as file:
            variables = file.read().split(b"\0")
    except OSError:
        return parent == 1
    return f"{_LAUNCHERS_OWN}={os.environ[_LAUNCHERS_OWN]}".encode() not in variables


def restart_system_calls() -> None:
    """Let system calls go on after SIGTERM and Ctrl-C, until a handler is set again.

    Otherwise those of Paddle's key-value store fail with "Interrupted system call" in the process that got the
    signal, and its server drops another one's connection.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.siginterrupt(number, False)


def tell_launcher(text: str) -> None:
    """Print a line on the terminal or pipe of the launcher, which after a signal shows no output of its processes.

    Nothing happens without a launcher, or where its output goes to a file.
    """
    if not launched():
        return
    try:
        console = os.open(f"/proc/{os.getppid()}/fd/2", os.O_WRONLY | os.O_NOCTTY)
    except OSError:  # another user's, or no Linux
        return
    try:
        if not stat.S_ISREG(os.fstat(console).st_mode):
            os.write(console, f"{text}\n".encode())
    except OSError:
        pass  # a pipe without a reader
    finally:
        os.close(console)


@functools.cache  # a second call would undo use_huge_pages
def keep_freed_memory() -> None:
    """Let glibc keep big blocks that Paddle frees, instead of asking the system for zeroed pages again.

    Measured on 2 cores, ViT-Ti/16 at batch 8: a training step takes 5 % less time.
    """
    libc = _glibc()
    if libc is not None:
        _keep(libc, _GIB)


@functools.cache  # further calls would only write to more of the heap's pages
def use_huge_pages(gib: int = 8) -> None:
    """Ask for pages of 2 MB for the next so many GiB of glibc's heap, which from then on gives nothing back.

    It takes addresses, not memory: pages come when they are first written. Where the system has no such pages, limits
    addresses, or grants no such heap, nothing changes. A training step on CPU takes 1 to 5 % less time
    (docs/performance.md).
    """
    libc = _glibc()
    if libc is None or not _addresses_are_free():
        return
    size = _keep(libc, -1)  # else the heap is cut off again below
    if not size:
        return
    blocks = [libc.malloc(size - 2**12) for _ in range(gib * _GIB // size)]
    start, end = -(-(blocks[0] or 0) // _HUGE) * _HUGE, libc.sbrk(0)
    if 0 < start < end:  # 0: refused; after the end: it came from elsewhere, as in a thread
        libc.madvise(start, end - start, _MADV_HUGEPAGE)
    for block in blocks:
        libc.free(block)


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _MADV_HUGEPAGE = -1, -3, 14
_HUGE, _GIB = 2**21, 2**30
_HEAP_BLOCKS = (_GIB, 32 * 2**20)  # glibc before 2.35 takes 32 MiB at most


def _keep(libc: ctypes.CDLL, trim: int) -> int:
    """Keep up to `trim` free bytes at the heap's end, or all (-1); blocks below the size returned are the heap's.

    Where glibc takes no such size, 0 is returned and nothing is set: a value for the end alone would fix the size at
    128 KiB, which otherwise grows by itself.
    """
    size = next((size for size in _HEAP_BLOCKS if libc.mallopt(_M_MMAP_THRESHOLD, size)), 0)
    if size:
        libc.mallopt(_M_TRIM_THRESHOLD, trim)
    return size


def _addresses_are_free(root: Path = Path("/")) -> bool:
    """Whether a large heap costs nothing until it is written, and huge pages are of 2 MB (512 on some ARM systems).

    It costs where this process may have only so many addresses, or the system promises no more memory than it has:
    files could not be mapped, and no loader's process be started.
    """
    import resource  # not on Windows

    if any(
        resource.getrlimit(kind)[0] != resource.RLIM_INFINITY for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)
    ):
        return False
    strict = _lines(root / "proc" / "sys" / "vm" / "overcommit_memory") == ["2"]
    return not strict and _lines(root / "sys/kernel/mm/transparent_hugepage/hpage_pmd_size") == [str(_HUGE)]


def _glibc() -> ctypes.CDLL | None:
    """The C library where it is glibc, of whose heap these functions know."""
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return None
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.restype, libc.free.argtypes = None, [ctypes.c_void_p]
    libc.sbrk.restype, libc.sbrk.argtypes = ctypes.c_size_t, [ctypes.c_ssize_t]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return libc


def require_system_libraries() -> None:
    """Paddle's wheels link OpenMP's runtime, which pip cannot install."""
    if not sys.platform.startswith("linux"):
        return
    try:
        ctypes.CDLL("libgomp.so.1")
    except OSError as error:
        raise DeviceError(
            "Paddle needs the system library libgomp.so.1, which pip cannot install.\n"
            "  Debian, Ubuntu:  apt-get install libgomp1\n"
            "  Fedora, RHEL:    dnf install libgomp"
        ) from error


def import_paddle(*, cpu_threads: int | None = None) -> ModuleType:
    """Set the process up for Paddle, see `prepare`, and import it.

    What the import prints of threads and ccache is left out. The handler that it leaves on the root logger, which
    would print every line of every library twice, and its handler of SIGTERM, which prints a C++ stack, are taken
    off again.

    Raises:
        DeviceError: Paddle or a system library that it needs is missing; the message says what to install.
    """
    prepare(cpu_threads=cpu_threads)
    if "paddle" in sys.modules:
        return sys.modules["paddle"]
    root = logging.getLogger()
    handlers = list(root.handlers)
    try:
        with _sigterm_kept(), stderr_without("OMP_NUM_THREADS"), warnings.catch_warnings(), _uncollected():
            warnings.filterwarnings("ignore", message="No ccache found")
            # that no device is there is said by plsc.devices, with the reason, and only where one is asked for
            warnings.filterwarnings("ignore", message=r"You are using \w+ version Paddle, but")
            import paddle
    except ModuleNotFoundError as error:
        if error.name != "paddle":
            raise
        raise DeviceError(
            "PaddlePaddle is not installed. plsc does not require it by name, since the package differs by device.\n"
            f"  cpu: {how_to_install('cpu')}\n  gpu: {how_to_install('gpu')}\n  xpu: {how_to_install('xpu')}"
        ) from error
    finally:
        root.handlers[:] = handlers
    return paddle


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Context without Python's search for garbage in cycles: an import makes many objects and leaves no garbage.

    Its objects count as old at the end, as if they had been searched; those of a command are never searched. Measured:
    0.12 s of Paddle's 0.88 s, and 0.18 s of what follows.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if is_command:
            gc.freeze()
        elif gc.get_freeze_count() == 0:  # else what the program itself has frozen would be searched again
            gc.freeze()
            gc.unfreeze()  # to the oldest generation
        if collects:
            gc.enable()


@contextlib.contextmanager
def stderr_without(*parts: str) -> Iterator[None]:
    """Context that leaves lines with one of these parts out of what Python code prints on stderr.

    The other lines appear at its end.
    """
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            yield
    finally:
        lines = printed.getvalue().splitlines(keepends=True)
        sys.stderr.write("".join(line for line in lines if not any(part in line for part in parts)))


@contextlib.contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Context that keeps the handler Python has for SIGTERM, which is called meanwhile, too.

    The signal itself is blocked: Paddle's handler never sees it, and the threads that the import starts get none
    later. Without a handler the signal takes effect at the end.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python sets handlers in the main thread only
        return
    left, late = threading.Event(), threading.Event()

    def deliver() -> None:
        # asked without a wait: a wait that is interrupted and then ends too late (a stopped process that continues, a
        # machine that pauses) returns from Python's sigtimedwait as if there had been a signal
        while not left.wait(0.1):
            if signal.sigtimedwait({signal.SIGTERM}, 0) is None:
                continue
            if callable(signal.getsignal(signal.SIGTERM)):
                _thread.interrupt_main(signal.SIGTERM)
            else:
                late.set()

    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    watcher = threading.Thread(target=deliver, name="plsc-sigterm", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        left.set()
        try:
            watcher.join()
        finally:  # of a handler that raises
            handler = signal.getsignal(signal.SIGTERM)
            signal.signal(signal.SIGTERM, signal.SIG_DFL if handler is None else handler)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        if late.is_set():
            signal.raise_signal(signal.SIGTERM)
