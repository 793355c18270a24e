"""Commands `plsc …` of a shell at the price of a fork: one process imports Paddle, and each command is a child of it.

A test page has dozens of commands, and each would import Paddle for two seconds. `Commands` starts the process and puts
two programs into a folder for PATH: `plsc`, which hands its arguments, environment, folder and streams over, and
`python`, which is this interpreter.
"""

import atexit
import contextlib
import importlib
import json
import os
import pkgutil
import select
import shlex
import signal
import socket
import subprocess
import sys
import threading
import traceback
from pathlib import Path

import plsc.cli
from plsc import environment
from tests.helpers import CHECKOUT, clean_environment

_CLIENT = """\
#!{python} -IS
import json, os, socket, sys
connection = socket.socket(socket.AF_UNIX)
connection.connect({address!r})
request = {{"arguments": sys.argv[1:], "environment": dict(os.environ), "folder": os.getcwd()}}
socket.send_fds(connection, [json.dumps(request).encode()], [0, 1, 2])
connection.shutdown(socket.SHUT_WR)
answer = connection.recv(16)
sys.exit(int(answer) if answer else "plsc ended without an exit code")
"""
_PYTHON = """\
#!/bin/sh
case "$*" in
*paddle.distributed.launch*tools/train.py*) exec {python} "$@" {small} ;;
*) exec {python} "$@" ;;
esac
"""


class Commands:
    """`plsc` and `python` for shells, in `folder`, which stands first on the PATH of `environment`.

    Args:
        small: command → arguments that are added to it, those of train also to every launch of tools/train.py.
    """

    def __init__(self, folder: Path, small: dict[str, list[str]]):
        folder.mkdir()
        address = str(folder / "socket")
        for name, text in (
            ("plsc", _CLIENT.format(python=sys.executable, address=address)),
            ("python", _PYTHON.format(python=sys.executable, small=shlex.join(small["train"]))),
        ):
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
        self.environment = clean_environment(
            PATH=f"{folder}:{os.environ['PATH']}", PYTHONPATH=str(CHECKOUT), PLSC_CACHE=str(folder / "cache")
        )
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.plsc_server", address, json.dumps(small)],
            cwd=CHECKOUT,
            env=self.environment,
            stdin=subprocess.PIPE,  # whose end is the end of the server, however this process ends
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"

    def shell(self, script: str, folder: Path, timeout: float = 120) -> subprocess.CompletedProcess:
        """Run a script as bash does, until the first command that fails; its two streams are one."""
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


_PROGRAMS = """\
import sys, traceback
names = {"__name__": "__main__"}
for path in sys.stdin:
    try:
        with open(path.strip(), encoding="utf-8") as file:
            exec(compile(file.read(), path.strip(), "exec"), names)
        print("\\0done", flush=True)
    except BaseException:
        traceback.print_exc(file=sys.stdout)
        print("\\0failed", flush=True)
"""


class Programs:
    """Python programs that are run one after the other in one process, each with the names of those before it."""

    def __init__(self, commands: Commands, folder: Path):
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAMS],
            cwd=folder,
            env=commands.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, file: Path, timeout: float = 120) -> str | None:
        """What a program printed if it failed, else None."""
        assert self._process.stdin and self._process.stdout
        watch = threading.Timer(timeout, self._process.kill)
        watch.start()
        print(file, file=self._process.stdin, flush=True)
        printed = ""
        for line in self._process.stdout:
            before, mark, result = line.partition("\0")
            printed += before
            if mark:
                watch.cancel()
                return None if result == "done\n" else printed
        return f"{printed}\nthe process ended, or was stopped after {timeout} s"

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def serve(address: str, small: dict[str, list[str]]) -> None:
    """Answer clients until standard input ends."""
    before = dict(os.environ)
    environment.prepare(cpu_threads=1)
    prepared = {name: value for name, value in os.environ.items() if before.get(name) != value}
    environment.import_paddle()
    for module in pkgutil.walk_packages(plsc.__path__, "plsc."):
        if module.name != "plsc.__main__":
            importlib.import_module(module.name)
    for name in ("matplotlib.pyplot", "sklearn.datasets", "sklearn.model_selection", "sklearn.metrics"):
        importlib.import_module(name)

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children leave nothing to wait for
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address)
    listening.listen()
    print("ready", flush=True)
    while listening in select.select([listening, sys.stdin], [], [])[0]:
        connection, _ = listening.accept()
        if os.fork() == 0:
            listening.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _answer(connection, plsc.cli.main, small, prepared)
        connection.close()


def _answer(connection: socket.socket, main, small: dict[str, list[str]], prepared: dict[str, str]) -> None:
    """Run one command in this process, send its exit code, and end. prepared: variables that its Paddle goes by."""
    code = 1
    try:
        data, streams, _, _ = socket.recv_fds(connection, 1 << 20, 3)
        while part := connection.recv(1 << 20):
            data += part
        request = json.loads(data)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update({**request["environment"], **prepared})
        arguments = request["arguments"]
        sys.argv = ["plsc", *arguments]
        code = main([*arguments, *small.get(arguments[0], [])] if arguments else [])
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:  # a child must never go on as the server
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        with contextlib.suppress(BrokenPipeError, ValueError):  # the reader has gone, and the streams are closed
            sys.stdout.flush()
            sys.stderr.flush()
        connection.sendall(str(code or 0).encode())
        os._exit(0)


if __name__ == "__main__":
    serve(sys.argv[1], json.loads(sys.argv[2]))
