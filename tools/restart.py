"""Run a command again and again until it is done: for training that goes on by Global.resume=auto.

    python tools/restart.py python -m paddle.distributed.launch --nproc_per_node 2 tools/train.py \\
        -c digits -o Global.resume=auto

Exit code 0 of the command ends this, and so does 2, an error for the user to correct. Everything else is tried again.
SIGTERM and Ctrl-C are handed on as one SIGTERM; when the command has saved and ended, this ends too, with 143 or 130.
"""

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import BinaryIO

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from plsc import environment
from plsc.engine.failures import USER_ERROR

_LASTING_SECONDS = 600.0
# of a command that was asked to end: plsc's own, and the launcher's, which returns the bare number of the signal
_ENDED_BY_SIGNAL = {128 + signal.SIGTERM, 128 + signal.SIGINT, int(signal.SIGTERM), int(signal.SIGINT)}


class Restarting:
    """A command that is started again when it fails.

    Args:
        tries: give up after so many failures in a row; one after ten minutes of work counts as the first.
        pause: seconds before a new start.
        restart_on: when a line of the command's standard error has this text, it is asked to end and started again.

    Attributes:
        asked: the signal that asked for the end of all, or None.
    """

    def __init__(self, command: list[str], *, tries: int, pause: float, restart_on: str | None = None):
        self.command, self.tries, self.pause, self.restart_on = command, tries, pause, restart_on
        self.asked: int | None = None
        self._child: subprocess.Popen | None = None
        self._handed_on = False

    def run(self) -> int:
        """Until the command is done, is asked to end, or gives no hope; returns the exit code."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)
        failures = 0
        while self.asked is None:
            started = time.monotonic()
            code = self._once()
            if code == 0:
                return 0
            if self.asked is not None:
                return 128 + self.asked if code in _ENDED_BY_SIGNAL else code
            failures = 1 if time.monotonic() - started > _LASTING_SECONDS else failures + 1
            if code == USER_ERROR or failures >= self.tries:
                reason = "an error to correct" if code == USER_ERROR else f"{failures} failures in a row"
                self._say(f"exit code {code}: {reason}, not started again")
                return code
            self._say(f"exit code {code}: starting again in {self.pause:g} s (failure {failures} of {self.tries})")
            until = time.monotonic() + self.pause
            while self.asked is None and time.monotonic() < until:
                time.sleep(0.1)
        return 128 + self.asked

    def _once(self) -> int:
        self._handed_on, this = False, os.getpid()
        # in a session of its own, so that a signal to the whole group reaches the command once, through this process
        self._child = subprocess.Popen(
            self.command,
            stderr=subprocess.PIPE if self.restart_on else None,
            start_new_session=True,
            preexec_fn=lambda: environment.die_with_parent(this, signal.SIGTERM),
        )
        if self.asked is not None:
            self._hand_on()
        if self._child.stderr is not None:
            threading.Thread(target=self._read, args=(self._child.stderr,), daemon=True).start()
        code = self._child.wait()
        self._child = None
        return code if code >= 0 else 128 - code

    def _read(self, lines: BinaryIO) -> None:
        """Pass the command's standard error on, and look for the text in it."""
        for line in lines:
            sys.stderr.buffer.write(line)
            sys.stderr.buffer.flush()
            if self.restart_on.encode() in line and not self._handed_on:
                self._say(f"a line with {self.restart_on!r}: the command is asked to end")
                self._hand_on()

    def _handle(self, number, frame) -> None:
        again = self.asked is not None
        self.asked = self.asked or number
        if again and number == signal.SIGINT:
            self._handed_on = False
        self._hand_on()

    def _hand_on(self) -> None:
        if self._child is not None and not self._handed_on:
            self._handed_on = True
            self._child.send_signal(signal.SIGTERM)

    @staticmethod
    def _say(text: str) -> None:
        print(f"restart.py: {text}", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=20, help="give up after so many failures in a row (default 20)")
    parser.add_argument("--pause", type=float, default=5.0, help="seconds before each new start (default 5)")
    parser.add_argument(
        "--restart_on",
        metavar="TEXT",
        help="ask the command to end, and start it again, at a line of its stderr with TEXT",
    )
    parser.add_argument("command", nargs=argparse.REMAINDER, help="the command and its arguments")
    arguments = parser.parse_args()
    if not arguments.command:
        parser.error("the command is missing")
    restarting = Restarting(
        arguments.command, tries=arguments.tries, pause=arguments.pause, restart_on=arguments.restart_on
    )
    return restarting.run()


if __name__ == "__main__":
    sys.exit(main())
