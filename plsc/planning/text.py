"""A Plan as a table to be read."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from plsc.runs.tables import text_table

if TYPE_CHECKING:
    from plsc.planning.memory import Memory
    from plsc.planning.planner import Plan

_PARTS = ("process", "weights", "masters", "optimizer", "average", "gradients", "communication", "activations")


def plan_text(plan: "Plan") -> str:
    """A line a fact, then the notes and the warnings."""
    notes = [f"note: {note}\n" for note in plan.notes] + [f"warning: {warning}\n" for warning in plan.warnings]
    return text_table(list(_rows(plan)), left=[True, True]) + "".join(notes)


def _rows(plan: "Plan") -> Iterator[tuple[str, str]]:
    frozen = "" if plan.trained == plan.parameters else f", {plan.trained:,} of them trained"
    yield "model", f"{plan.model}, {plan.parameters:,} parameters{frozen}"
    if plan.flops is not None and plan.update_flops is not None:
        yield (
            "operations",
            f"{plan.flops / 1e9:,.3g} GFLOPs an image forward, {plan.update_flops / 1e12:,.3g} TFLOPs an update",
        )
    yield "devices", f"{plan.devices} x {plan.device} in {plan.precision}"
    yield from _memory_rows(plan.memory)
    yield from _stage_rows(plan)
    yield "batch", f"{plan.global_batch:,} images an update, micro-batches of {plan.memory.micro_batch}"
    if plan.steps is not None:
        images = f"{plan.steps * plan.global_batch:,} images"
        yield "length", f"{plan.steps:,} updates, {images}, {plan.epochs:,.4g} epochs of {plan.samples:,} samples"
        first_and_peak = f"{plan.first_rate:.3g} first, {plan.peak_rate:.3g} at update {plan.peak_step:,}"
        yield "learning rate", f"{first_and_peak}, {plan.last_rate:.3g} last"
    if plan.hours is not None:
        share = f"at {100 * plan.utilisation:.3g} % of {plan.tflops:g} TFLOPS"
        hours = f"{plan.hours:,.3g} hours" if plan.hours >= 1 else f"{60 * plan.hours:,.3g} minutes"
        of_devices = f", {plan.device_hours:,.3g} device hours" if plan.devices > 1 else ""
        yield "time", f"{hours}{of_devices} {share}; reading data, evaluation and saving come on top"
    files = ", ".join(f"{name} {_size(size)}" for name, size in plan.checkpoint.items())
    yield "checkpoint", f"{_size(sum(plan.checkpoint.values()))} ({files}); at most {_size(plan.disk)} on disk"


def _memory_rows(memory: "Memory") -> Iterator[tuple[str, str]]:
    parts = ", ".join(f"{name} {_size(getattr(memory, name))}" for name in _PARTS if getattr(memory, name))
    yield "memory", f"{_size(memory.peak)} at its peak: {parts}"
    kept = f"{_size(memory.activations_kept)} as a whole"
    if memory.activations_recomputed is not None:
        kept += f", {_size(memory.activations_recomputed)} with DistributedStrategy.recompute"
    yield "activations", kept
    if memory.available is None:
        yield "fits", "unknown: give the device's memory with --memory"
    else:
        answer = "yes" if memory.fits else "NO"
        largest = f"the largest micro-batch is {memory.largest:,}" if memory.largest else "not even a batch of 1 does"
        yield "fits", f"{answer}, in {_size(memory.available)}; {largest}"


def _stage_rows(plan: "Plan") -> Iterator[tuple[str, str]]:
    """What sharding does, where it is asked for or might help."""
    if plan.memory is plan.stages.get(0) and plan.memory.fits is not False:
        return
    yield "start", f"{_size(plan.memory.start)}: every process begins with all weights, built in float32"
    for stage, memory in plan.stages.items():
        largest = "" if memory.available is None else f", micro-batches of at most {memory.largest:,}"
        received = f"{_size(memory.traffic)} received in an update"
        yield f"stage {stage}" if stage else "unsharded", f"{_size(memory.peak)} at its peak{largest}, {received}"


def _size(size: float) -> str:
    """Bytes with three digits and a unit."""
    for unit in ("B", "KiB", "MiB"):
        if size < 999.5:  # which three digits show as 1e+03
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:,.3g} GiB" if size < 999.5 else f"{size:,.0f} GiB"
