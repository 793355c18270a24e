"""Log lines, a progress bar on a terminal, and the time that training takes."""

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from plsc.errors import ConfigError
from plsc.files import AppendedFile

log = logging.getLogger("plsc")


class _Console(logging.Handler):
    """Prints through tqdm, so that lines do not cut through a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stdout)
        sys.stdout.flush()


class _LogFile(logging.Handler):
    """Adds lines to a file. Where that fails, the thread that made it gets one ConfigError from its log call."""

    def __init__(self, path: Path):
        super().__init__()
        self._file, self._owner = AppendedFile(path), threading.get_ident()
        self._problem: OSError | None = None
        self._raised = False

    def emit(self, record: logging.LogRecord) -> None:
        if self._problem is None:
            try:
                self._file.add(self.format(record))
            except OSError as problem:
                self._problem = problem
        if threading.get_ident() == self._owner:
            self.check()

    def check(self) -> None:
        """Raise the ConfigError of a line that could not be written, once."""
        if self._problem is not None and not self._raised:
            self._raised = True
            raise cannot_be_written(self._file.path, self._problem) from self._problem

    def close(self) -> None:
        self._file.close()
        super().close()


def cannot_be_written(path: Path, problem: OSError) -> ConfigError:
    """What ends a run that can no longer write a file of its run directory."""
    return ConfigError(
        f"Global.output_dir: {path} cannot be written: {problem.strerror}. The run ends here, since what it does would "
        "be lost; -o Global.resume=auto continues after the newest checkpoint once the folder can be written"
    )


@contextlib.contextmanager
def logging_to(file: Path | None, *, verbose: bool = True) -> Iterator[None]:
    """Context in which plsc's log lines go to the console and, where given, are added to a file.

    Handlers that a program has set itself stay. Afterwards the logger is as it was before, and the file is closed.

    Args:
        verbose: every line; else only warnings, as on all processes but the first.

    Raises:
        OSError: the file cannot be opened.
        ConfigError: a line could not be written; also from the log call itself.
    """
    handlers: list[logging.Handler] = [_Console()]
    log_file = None
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        log_file = _LogFile(file)
        handlers.append(log_file)
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname).1s %(message)s", "%H:%M:%S"))
    before, level, propagate = list(log.handlers), log.level, log.propagate
    log.handlers[:] = [handler for handler in before if not isinstance(handler, _Console)] + handlers
    log.propagate = False  # a handler of the root logger would print every line again
    log.setLevel(logging.INFO if verbose else logging.WARNING)
    try:
        yield
        if log_file is not None:
            log_file.check()
    finally:
        log.handlers[:], log.propagate = before, propagate
        log.setLevel(level)
        for handler in handlers:
            handler.close()


def start_logging(file: Path | None, verbose: bool = True) -> None:
    """As `logging_to`, for the rest of the process."""
    _for_the_process.enter_context(logging_to(file, verbose=verbose))


_for_the_process = contextlib.ExitStack()


class Meter:
    """Time of training since the last log line, without evaluation and saving.

    Args:
        full_speed: images a second at the devices' peak, see plsc.engine.utilisation; None where it is unknown.
    """

    def __init__(self, full_speed: float | None = None) -> None:
        self._full_speed = full_speed
        self._total = self._waited = 0.0
        self._images = 0
        self._mark = time.perf_counter()
        self._pauses = 0

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Context whose time does not count; may be nested."""
        if self._pauses == 0:
            self._total += time.perf_counter() - self._mark
        self._pauses += 1
        try:
            yield
        finally:
            self._pauses -= 1
            self._mark = time.perf_counter()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Context of waiting for input."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def count(self, images: int) -> None:
        """One update with `images` over all processes."""
        self._images += images

    def read(self) -> dict[str, float]:
        """images_per_second, data_time_fraction and, where the devices' peak is known, mfu since the last reading."""
        now = time.perf_counter()
        total = max(self._total + now - self._mark, 1e-9)
        result = {"images_per_second": self._images / total, "data_time_fraction": self._waited / total}
        if self._full_speed is not None:
            result["mfu"] = result["images_per_second"] / self._full_speed
        self._total = self._waited = 0.0
        self._images, self._mark = 0, now
        return result


def progress_bar(total: int, initial: int = 0, description: str = "", leave: bool = True, show: bool = True) -> tqdm:
    """A bar on a terminal, nothing in a file."""
    return tqdm(
        total=total,
        initial=initial,
        desc=description,
        leave=leave,
        dynamic_ncols=True,
        disable=not (show and sys.stderr.isatty()),
    )


def duration(seconds: float) -> str:
    """Seconds as 1 d 02:03:04, or 2:03:04."""
    seconds = round(seconds)
    days, rest = divmod(seconds, 86400)
    clock = f"{rest // 3600}:{rest // 60 % 60:02d}:{rest % 60:02d}"
    return f"{days} d {clock}" if days else clock
