"""The learning rate of a recipe before it is run."""

from pathlib import Path

import numpy as np

from plsc import build
from plsc.config import Config
from plsc.optim import WithWarmup
from plsc.visualize import sheet

_POINTS = 2000
_HINT = "--steps N draws the schedule of a run of N updates without the data"


def draw_schedule(config: Config, output: str | Path, *, steps: int | None = None, processes: int = 1) -> Path:
    """Draw the learning rate of a configuration over updates and epochs, the warm-up shaded.

    Args:
        config: see plsc.load_config. output: a .png or .svg file.
        steps, processes: see plsc.build.length_of.

    Returns:
        The file that was written.

    Raises:
        ConfigError, DataError: as plsc.build.length_of.
    """
    length = build.length_of(config, steps=steps, processes=processes, hint=_HINT)
    schedule = build.schedule(config, length.schedule_steps, length.steps_per_epoch)
    warmup = min(schedule.warmup, length.steps) if isinstance(schedule, WithWarmup) else 0
    spread = np.linspace(0, length.steps - 1, min(length.steps, _POINTS)).round().astype(int)
    drawn = np.unique([*spread, min(warmup, length.steps - 1)]).tolist()  # the peak itself is among them
    rates = [schedule(step) for step in drawn]
    name = f", {config.LRScheduler.name}" if config.LRScheduler else ""
    figure = sheet.new(9, 4.8, f"{sheet.end_of(config.source.name)}: learning rate{name}")
    axis = figure.subplots()
    if warmup:
        axis.axvspan(0, warmup, color="C1", alpha=0.15, linewidth=0, label=f"warm-up, {warmup:,} updates")
    axis.plot(drawn, rates, "o-" if len(drawn) <= 20 else "-", markersize=3, color="C0")
    peak = int(np.argmax(rates))
    axis.plot(drawn[peak], rates[peak], "o", color="C3", label=f"peak {rates[peak]:.3g} at update {drawn[peak]:,}")
    axis.plot(drawn[-1], rates[-1], "s", color="C2", label=f"last {rates[-1]:.3g} at update {drawn[-1]:,}")
    axis.set_xlabel(f"update (of {length.steps:,})")
    axis.set_ylabel("learning rate")
    sheet.whole_numbers(axis.xaxis)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axis.set_ylim(bottom=0)
    axis.margins(x=0.01)
    per_epoch = length.steps_per_epoch
    if per_epoch < length.steps:
        epochs = axis.secondary_xaxis(
            "top", functions=(lambda step: np.divide(step, per_epoch), lambda epoch: np.multiply(epoch, per_epoch))
        )
        epochs.set_xlabel(f"epoch (of {per_epoch:,} updates)")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=9)
    return sheet.save(figure, Path(output))
