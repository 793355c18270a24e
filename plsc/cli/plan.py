"""Say what a run costs before it is run: operations, memory, time, disk, schedule, and warnings of known mistakes.

The devices planned for need not be there; without the training data give their number with --samples.
"""

import argparse
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from plsc.cli.common import above_zero, add_config_arguments, load_config, positive, print_table

if TYPE_CHECKING:
    from plsc.planning import Memory, Plan

EXAMPLES = """\
  plsc plan -c digits --tflops 0.05
  plsc plan -c ViT_base_patch16_224_in1k_1n8c_dp_fp16o2 --devices 8 --memory 40GiB --tflops 312 --samples 1281167
  plsc plan -c my_run.yaml -o Global.device=gpu -o Global.accum_steps=4 --memory 24GiB
"""

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    parser.add_argument(
        "--devices", type=above_zero, default=1, metavar="N", help="that the run is to have, a process each; default: 1"
    )
    parser.add_argument(
        "--memory", type=_bytes, metavar="SIZE", help="of one device, such as 40GiB; default: of this machine's"
    )
    parser.add_argument(
        "--tflops",
        type=positive,
        metavar="N",
        help="peak of one device in the run's precision; default: Global.device_tflops, or what is known of this "
        "machine's GPU",
    )
    parser.add_argument(
        "--utilisation",
        type=positive,
        default=0.4,
        metavar="SHARE",
        help="of the peak that training reaches, for the hours; default: %(default)s",
    )
    parser.add_argument(
        "--samples",
        type=above_zero,
        metavar="N",
        help="of the training data; default: counted, so that they must be there",
    )


def run(arguments: argparse.Namespace) -> int:
    config = load_config(arguments.config, arguments.override, arguments.imports)
    from plsc.planning import plan

    planned = plan(
        config,
        devices=arguments.devices,
        memory=arguments.memory,
        tflops=arguments.tflops,
        utilisation=arguments.utilisation,
        samples=arguments.samples,
    )
    print_table(list(_rows(planned)), left=[True, True])
    for note in planned.notes:
        print(f"note: {note}")
    for warning in planned.warnings:
        print(f"warning: {warning}")
    return 0


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
    files = ", ".join(f"{name} {size_text(size)}" for name, size in plan.checkpoint.items())
    yield "checkpoint", f"{size_text(sum(plan.checkpoint.values()))} ({files}); at most {size_text(plan.disk)} on disk"


def _memory_rows(memory: "Memory") -> Iterator[tuple[str, str]]:
    names = ("process", "weights", "masters", "optimizer", "average", "gradients", "communication", "activations")
    parts = ", ".join(f"{name} {size_text(getattr(memory, name))}" for name in names if getattr(memory, name))
    yield "memory", f"{size_text(memory.peak)} at its peak: {parts}"
    kept = f"{size_text(memory.activations_kept)} as a whole"
    if memory.activations_recomputed is not None:
        kept += f", {size_text(memory.activations_recomputed)} with DistributedStrategy.recompute"
    yield "activations", kept
    if memory.available is None:
        yield "fits", "unknown: give the device's memory with --memory"
    else:
        answer = "yes" if memory.fits else "NO"
        largest = f"the largest micro-batch is {memory.largest:,}" if memory.largest else "not even a batch of 1 does"
        yield "fits", f"{answer}, in {size_text(memory.available)}; {largest}"


def size_text(size: int) -> str:
    """Bytes as a reader wants them."""
    amount = float(size)
    for unit in ("B", "KiB", "MiB"):
        if amount < 1000:
            return f"{amount:.3g} {unit}"
        amount /= 1024
    return f"{amount:,.3g} GiB" if amount < 1000 else f"{amount:,.0f} GiB"


def _bytes(text: str) -> int:
    """ "40GiB", "24 GB" or a number of bytes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    if match is None or match[2].upper() not in _UNITS or float(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 40GiB or 24GB")
    return round(float(match[1]) * _UNITS[match[2].upper()])
