"""Say what a run costs before it is run: operations, memory, time, disk, schedule, and warnings of known mistakes.

The devices planned for need not be there; without the training data give their number with --samples.
"""

import argparse
import re

from plsc.cli.common import above_zero, add_config_arguments, config_of, positive

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
    config = config_of(arguments)
    from plsc.planning import plan

    planned = plan(
        config,
        devices=arguments.devices,
        memory=arguments.memory,
        tflops=arguments.tflops,
        utilisation=arguments.utilisation,
        samples=arguments.samples,
    )
    print(planned.text(), end="")
    return 0


def _bytes(text: str) -> int:
    """ "40GiB", "24 GB" or a number of bytes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    if match is None or match[2].upper() not in _UNITS or float(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 40GiB or 24GB")
    return round(float(match[1]) * _UNITS[match[2].upper()])
