"""What pip cannot install and plsc needs, by name, with the line that installs it.

Runs on any Python, before anything is installed; exit code 1 where something is missing.
"""

import ctypes
import sys


def missing():
    """Messages, one a missing thing."""
    if sys.version_info < (3, 10):
        present = ".".join(str(part) for part in sys.version_info[:3])
        yield "Python 3.10 or newer is needed, this is %s; choose another with: make PYTHON=python3.11" % present
        return
    try:
        import ensurepip  # noqa: F401 - Debian leaves it out of python3
        import venv  # noqa: F401
    except ImportError:
        yield "Python's venv module is missing. Debian, Ubuntu: apt-get install python3-venv"
    if sys.platform.startswith("linux"):
        try:
            ctypes.CDLL("libgomp.so.1")
        except OSError:
            yield "Paddle needs libgomp.so.1. Debian, Ubuntu: apt-get install libgomp1; Fedora: dnf install libgomp"


if __name__ == "__main__":
    messages = list(missing())
    for message in messages:
        sys.stderr.write("error: %s\n" % message)
    sys.exit(1 if messages else 0)
