"""Paddle's profiler over a range of updates, switched by PLSC's -p string."""

import logging
from pathlib import Path

import paddle.profiler as profiler

from plsc.config.coerce import coerce
from plsc.errors import ConfigError
from plsc.registry import nearest

log = logging.getLogger("plsc")

_KEYS = {
    "batch_range": list[int],  # first update and the one after the last
    "state": str,  # CPU, GPU or All
    "sorted_key": str,  # order of the table printed
    "tracer_option": str,  # Default or OpDetail; both record operators
    "profile_path": str,  # default: profile/ in the run directory
    "exit_on_finished": bool,
}
_ORDERS = {
    "total": profiler.SortedKeys.CPUTotal,
    "ave": profiler.SortedKeys.CPUAvg,
    "max": profiler.SortedKeys.CPUMax,
    "min": profiler.SortedKeys.CPUMin,
    "gpu_total": profiler.SortedKeys.GPUTotal,
}


def parse(text: str) -> dict:
    """ "batch_range=[10,20];state=All" → values. Raises ConfigError naming the key."""
    values = {
        "batch_range": [10, 20],
        "state": "All",
        "sorted_key": "total",
        "tracer_option": "Default",
        "profile_path": None,
        "exit_on_finished": True,
    }
    for item in filter(None, (part.strip() for part in text.split(";"))):
        key, equals, value = (part.strip() for part in item.partition("="))
        if key not in _KEYS or not equals:
            close = nearest(key, _KEYS)
            raise ConfigError(
                f"profiler options: {item!r}: "
                + (f"did you mean {close}=…?" if close else f"there are {', '.join(_KEYS)}, each as key=value")
            )
        kind = _KEYS[key]
        if kind is bool:
            if value.lower() not in ("true", "false"):
                raise ConfigError(f"profiler options: {key} is true or false, not {value}")
            value = value.lower() == "true"
        values[key] = coerce(value, kind)
    first_last = values["batch_range"]
    whole = isinstance(first_last, list) and all(type(n) is int for n in first_last)
    if not (whole and len(first_last) == 2 and 0 <= first_last[0] < first_last[1]):
        raise ConfigError(f"profiler options: batch_range is two rising numbers such as [10,20], not {first_last}")
    tracers = ("Default", "OpDetail", "AllOpDetail")
    for key, choices in (("sorted_key", _ORDERS), ("state", ("CPU", "GPU", "All")), ("tracer_option", tracers)):
        if values[key] not in choices:
            raise ConfigError(f"profiler options: {key} is one of {', '.join(choices)}, not {values[key]}")
    return values


class Profile:
    """Context that records updates [first, last) of this process and prints where the time went.

    Args:
        options: Global.profiler_options; None records nothing.
        output_dir: where the profile goes, unless the options say.
    """

    def __init__(self, options: str | None, output_dir: str):
        self._running = False
        if options is None:
            return
        values = parse(options)
        self.first, self.last = values["batch_range"]
        self.exit_on_finished = values["exit_on_finished"]
        self._order = _ORDERS[values["sorted_key"]]
        self._path = values["profile_path"] or str(Path(output_dir) / "profile")
        targets = {"CPU": [profiler.ProfilerTarget.CPU], "GPU": [profiler.ProfilerTarget.GPU], "All": None}
        self._profiler = profiler.Profiler(
            targets=targets[values["state"]],
            scheduler=(self.first, self.last),
            on_trace_ready=profiler.export_chrome_tracing(self._path),
        )
        self._updates, self._running = 0, True
        self._profiler.start()

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, kind: type | None, *_) -> None:
        if kind is None:
            self.close()
        elif self._running:
            self._profiler.stop()

    def step(self) -> bool:
        """Call after each update; returns True when the run should end here."""
        if not self._running:
            return False
        self._profiler.step()
        self._updates += 1
        if self._updates < self.last:
            return False
        self.close()
        return self.exit_on_finished

    def close(self) -> None:
        """Stop recording and print what was recorded; says so where the run ended before the range."""
        if not self._running:
            return
        self._running = False
        self._profiler.stop()
        if self._updates <= self.first:
            log.warning(
                "nothing was profiled: the run ended after %d updates, before batch_range=[%d,%d]",
                self._updates,
                self.first,
                self.last,
            )
            return
        self._profiler.summary(sorted_by=self._order, op_detail=False, thread_sep=False)
        log.info("the profile of updates %d to %d is in %s (chrome://tracing)", self.first, self._updates, self._path)
