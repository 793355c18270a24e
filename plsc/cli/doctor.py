"""Look for what is wrong with this machine or cluster, in about a minute: one table of pass, warn and fail.

Versions, device, kernels, collectives, bandwidth, disk, clocks and a training step, each with what to do about it.
Under paddle.distributed.launch all processes are looked at together. Exit code 1 where anything fails.
"""

import argparse
import json
import os
import sys
from typing import NoReturn

from plsc import environment
from plsc.cli.common import above_zero, add_import_argument, import_parts

EXAMPLES = """\
  plsc doctor
  plsc doctor --device gpu --run-directory /shared/runs --model ViT_large_patch16_224 --json > doctor.json
  python -m paddle.distributed.launch --nproc_per_node 2 tools/doctor.py --device cpu
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device", default="auto", metavar="NAME", help="cpu, gpu, …; default: a GPU where there is one"
    )
    parser.add_argument(
        "--run-directory", default="output", metavar="DIR", help="where runs are to write (default: %(default)s)"
    )
    parser.add_argument(
        "--model", default="ViT_base_patch16_224", metavar="NAME", help="of the training step (default: %(default)s)"
    )
    parser.add_argument(
        "--batch-size", type=above_zero, metavar="N", help="images a process of the training step; default: by speed"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    add_import_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    environment.import_paddle()
    import_parts(arguments)
    from plsc.doctor import diagnose
    from plsc.engine.failures import exit_code

    first = environment.rank() == 0

    def progress(name: str) -> None:
        if first:
            print(f"checking: {name}", file=sys.stderr, flush=True)

    try:
        diagnosis = diagnose(
            device=arguments.device,
            run_directory=arguments.run_directory,
            model=arguments.model,
            batch_size=arguments.batch_size,
            progress=progress,
        )
    except (KeyboardInterrupt, environment.Terminated) as error:
        print("interrupted" if isinstance(error, KeyboardInterrupt) else "terminated", file=sys.stderr)
        _leave(exit_code(error))
    if first:
        text = json.dumps(diagnosis.to_dict(), indent=2) if arguments.json else diagnosis.text()
        print(text, flush=True)
        if diagnosis.ended:  # the launcher shows no more of what its processes print
            environment.tell_launcher(text)
    code = 1 if diagnosis.verdict == "fail" else 0
    if diagnosis.stuck:
        _leave(code)
    return code


def _leave(code: int) -> NoReturn:
    """End at once: a thread is still in Paddle, which would abort the process where Python ends it."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
