"""Build the pretend accelerator against the installed Paddle, and run a command with it.

    python tests/accelerator/build.py                                             # build, print the folder
    python tests/accelerator/build.py python -m pytest tests/amp                  # build, then run this
    python tests/accelerator/build.py plsc train -c digits -o Global.device=npu

A build takes about a minute and is kept in ~/.cache/plsc, by the version of Paddle and the contents of the sources.
"""

import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCES = Path(__file__).resolve().parent
DEVICE = "npu"
FLAGS = ["-std=c++17", "-fPIC", "-w", "-DPADDLE_WITH_CUSTOM_DEVICE", "-DPADDLE_WITH_CUSTOM_KERNEL"]
LIBRARIES = ["-lphi", "-lphi_core", "-lcommon", "-l:libpaddle.so", "-lrt"]
PROBLEM = "PRETEND_ACCELERATOR_PROBLEM"  # set in the environment of the command where it cannot be built


class Unavailable(Exception):
    """Why the pretend accelerator cannot be built here."""


def paddle_folder() -> Path:
    """Where Paddle is installed. Does not import it."""
    spec = importlib.util.find_spec("paddle")
    if spec is None:
        raise Unavailable("PaddlePaddle is not installed")
    return Path(spec.submodule_search_locations[0])


def write_lists(folder: Path, headers: Path) -> None:
    """What kernels.cc includes: the headers that declare Paddle's kernels, and a KERNEL(name, function) each."""
    outside = ("kernels/funcs/", "kernels/impl/", "glog/")  # what a wheel has only in part
    declaring = [
        header
        for header in sorted(headers.glob("paddle/phi/kernels/*_kernel.h"))
        if not any(folder in header.read_text(errors="replace") for folder in outside)
    ]
    includes = [f'#include "{header.relative_to(headers)}"\n' for header in declaring]
    (folder / "kernel_headers.inc").write_text("".join(includes))
    lines = (SOURCES / "kernels.txt").read_text().splitlines()
    rows = []
    for word in " ".join(line for line in lines if not line.startswith("#")).split():
        name, _, function = word.partition("=")
        function = function or "".join(part.capitalize() for part in name.split("_")) + "Kernel"
        rows.append(f'KERNEL("{name}", {function}{"" if "<" in function else "<float, CPUContext>"})\n')
    (folder / "kernel_list.inc").write_text("".join(rows))


def compile_and_link(folder: Path, paddle: Path) -> None:
    """libpretend.so in `folder`."""
    write_lists(folder, paddle / "include")
    places = [f"-I{place}" for place in (folder, paddle / "include", paddle / "include" / "third_party")]
    units = sorted(SOURCES.glob("*.cc"))
    compilers = []
    for unit in units:
        speed = "-O0" if unit.stem == "kernels" else "-O2"  # of its thousands of small functions none is worth a minute
        command = ["g++", *FLAGS, speed, *places, "-c", unit, "-o", folder / f"{unit.stem}.o"]
        compilers.append(subprocess.Popen(command, stderr=subprocess.PIPE))
    for unit, compiler in zip(units, compilers, strict=True):
        _, errors = compiler.communicate()
        if compiler.returncode != 0:
            raise Unavailable(f"{unit.name} does not compile: {errors.decode(errors='replace')[-2000:]}")
    objects = [folder / f"{unit.stem}.o" for unit in units]
    linker = [
        "g++",
        "-shared",
        *objects,
        "-o",
        folder / "libpretend.so",
        f"-L{paddle / 'libs'}",
        f"-L{paddle / 'base'}",
    ]
    done = subprocess.run([*linker, *LIBRARIES], capture_output=True, text=True)
    if done.returncode != 0:
        raise Unavailable(f"libpretend.so cannot be linked: {done.stderr[-2000:]}")
    for path in folder.iterdir():
        if path.name != "libpretend.so":
            path.unlink()


def build() -> Path:
    """The folder of the built plug-in, which is built where it is not there yet.

    Raises:
        Unavailable: no compiler, no headers, or another Paddle than this was written for.
    """
    paddle = paddle_folder()
    if shutil.which("g++") is None:
        raise Unavailable("g++ is missing (Debian, Ubuntu: apt-get install g++)")
    if not (paddle / "include" / "paddle" / "phi" / "backends" / "device_ext.h").is_file():
        raise Unavailable(f"{paddle}: this Paddle comes without the headers of plug-in devices")
    content = hashlib.sha256()
    for path in sorted(SOURCES.iterdir()):
        if path.suffix in {".cc", ".h", ".txt", ".py"}:
            content.update(path.read_bytes())
    version = importlib.metadata.version("paddlepaddle")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "plsc" / "pretend_accelerator"
    finished = cache / f"{version}-{content.hexdigest()[:12]}"
    if not finished.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        print(f"building the pretend accelerator for Paddle {version}, once", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(dir=cache) as writing:
            made = Path(writing) / "plug-in"
            made.mkdir()
            compile_and_link(made, paddle)
            try:
                made.rename(finished)
            except OSError:
                if not finished.is_dir():  # else another process was faster
                    raise
    return finished


def settings(folder: Path) -> dict[str, str]:
    """Environment variables with which Paddle finds the device."""
    return {
        "CUSTOM_DEVICE_ROOT": str(folder),
        "FLAGS_use_stride_kernel": "0",  # views of memory are kernels too, which this device does not have
    }


def main() -> None:
    command = sys.argv[1:]
    try:
        folder = build()
    except Unavailable as problem:
        if not command:
            raise SystemExit(f"the pretend accelerator cannot be built: {problem}") from None
        os.environ[PROBLEM] = str(problem)
    else:
        if not command:
            print(folder)
            return
        os.environ.update(settings(folder))
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
