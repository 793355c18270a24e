"""Paddle's profiler over a range of updates, switched by PLSC's -p string."""

import logging
from pathlib import Path
from typing import Literal

import paddle.profiler as profiler
from pydantic import BaseModel, ValidationError, field_validator

from plsc.bounds import NonNegative
from plsc.config.coerce import coerce
from plsc.errors import ConfigError
from plsc.registry import nearest

log = logging.getLogger("plsc")

_ORDERS = {
    "total": profiler.SortedKeys.CPUTotal,
    "ave": profiler.SortedKeys.CPUAvg,
    "max": profiler.SortedKeys.CPUMax,
    "min": profiler.SortedKeys.CPUMin,
    "gpu_total": profiler.SortedKeys.GPUTotal,
}


class Options(BaseModel):
    """The values of the string.

    Attributes:
        batch_range: first update and the one after the last.
        sorted_key: order of the table printed.
        tracer_option: all of them record operators.
        profile_path: default: profile/ in the run directory.
        exit_on_finished: whether the run ends with the range.
    """

    batch_range: tuple[NonNegative, NonNegative] = (10, 20)
    state: Literal["CPU", "GPU", "All"] = "All"
    sorted_key: Literal["total", "ave", "max", "min", "gpu_total"] = "total"
    tracer_option: Literal["Default", "OpDetail", "AllOpDetail"] = "Default"
    profile_path: str | None = None
    exit_on_finished: bool = True

    @field_validator("batch_range")
    @classmethod
    def _rising(cls, value: tuple[int, int]) -> tuple[int, int]:
        if value[0] >= value[1]:
            raise ValueError("two rising numbers such as [10,20] are expected")
        return value


def parse(text: str) -> Options:
    """ "batch_range=[10,20];state=All" → values. Raises ConfigError naming the key."""
    values = {}
    for item in filter(None, (part.strip() for part in text.split(";"))):
        key, equals, value = (part.strip() for part in item.partition("="))
        if key not in Options.model_fields or not equals:
            close, keys = nearest(key, Options.model_fields), ", ".join(Options.model_fields)
            hint = f"did you mean {close}=…?" if close else f"there are {keys}, each as key=value"
            raise ConfigError(f"profiler options: {item!r}: {hint}")
        values[key] = coerce(value, list[int]) if key == "batch_range" else value
    try:
        return Options.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        name, message = str(problem["loc"][0]), problem["msg"]
        raise ConfigError(f"profiler options: {name}={values[name]}: {message[0].lower()}{message[1:]}") from error


class Profile:
    """Context that records updates [first, last) of this process and prints where the time went.

    Args:
        options: Global.profiler_options; None records nothing.
        output_dir: where the profile goes, unless the options name a place.
    """

    def __init__(self, options: str | None, output_dir: str):
        self._running = False
        if options is None:
            return
        parsed = parse(options)
        self.first, self.last = parsed.batch_range
        self.exit_on_finished = parsed.exit_on_finished
        self._order = _ORDERS[parsed.sorted_key]
        self._path = parsed.profile_path or str(Path(output_dir) / "profile")
        targets = {"CPU": [profiler.ProfilerTarget.CPU], "GPU": [profiler.ProfilerTarget.GPU], "All": None}
        self._profiler = profiler.Profiler(
            targets=targets[parsed.state],
            scheduler=(self.first, self.last),
            on_trace_ready=profiler.export_chrome_tracing(self._path),
        )
        self._updates, self._running = 0, True
        self._profiler.start()

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
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
        """Stop recording and print what was recorded; warns where the run ended before the range."""
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
