"""Name the classes of pictures, by a checkpoint or an export.

How pictures enter the model comes from the checkpoint or export itself, or from -c RECIPE where these do not state it.
A picture that cannot be read is reported on standard error and left out; the exit code is then 1.
"""

import argparse
import contextlib
import itertools
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TextIO

from plsc.cli.common import (
    above_zero,
    add_config_arguments,
    add_weights_arguments,
    checked_output,
    hint_at_averaged,
    optional_config,
    weights_of,
)
from plsc.errors import ConfigError, DataError
from plsc.predictions import FORMATS, path_text

if TYPE_CHECKING:
    from plsc.config import Config
    from plsc.predictor import Predictor

EXAMPLES = """\
  plsc predict --weights output/mine photo.jpg
  plsc predict --weights mine_onnx --topk 3 pictures/ "more/**/*.png"
  find /data -name "*.jpg" | plsc predict --weights output/mine --output found.jsonl -
  plsc predict --weights deit.npz -c DeiT_tiny_patch16_224_eval --class-names imagenet.txt photo.jpg
"""

_NOT_READ = 1  # the exit code where some pictures could not be read


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "pictures",
        nargs="+",
        metavar="IMAGE|FOLDER|GLOB",
        help="pictures; folders are read with those below them, quoted patterns are expanded, - takes paths from "
        "standard input, one a line",
    )
    add_weights_arguments(parser, exports=True)
    add_config_arguments(parser, required=False)
    parser.add_argument(
        "--resolution",
        type=above_zero,
        metavar="PIXELS",
        help="another image size; resize and crop change in proportion",
    )
    parser.add_argument(
        "--topk", type=above_zero, default=5, metavar="K", help="classes a picture (default: %(default)s)"
    )
    activation = parser.add_mutually_exclusive_group()
    activation.add_argument(
        "--sigmoid",
        action="store_true",
        help="a probability for each class by itself; default: as the loss that the model was trained with",
    )
    activation.add_argument(
        "--softmax",
        action="store_true",
        help="probabilities that sum to one; default: as the loss that the model was trained with, and with a warning "
        "where the weights do not state it",
    )
    parser.add_argument("--class-names", metavar="FILE", help="a name a line, instead of those of the weights")
    parser.add_argument(
        "--format",
        choices=tuple(FORMATS),
        help="what is written; default: as --output ends, .csv or .jsonl, else table",
    )
    parser.add_argument("--output", metavar="FILE", help="where it is written; default: standard output")
    parser.add_argument("--batch-size", type=above_zero, default=32, metavar="N", help="default: %(default)s")
    parser.add_argument("--device", metavar="NAME", help="cpu, gpu, gpu:1, …; default: a GPU where there is one")


def run(arguments: argparse.Namespace) -> int:
    output = checked_output("--output", arguments.output) if arguments.output else None
    format = _format(arguments.format, output)
    given = itertools.count()
    named = itertools.chain.from_iterable([_pictures(name) for name in arguments.pictures])
    pictures = (picture for picture, _ in zip(named, given, strict=False))
    damaged = []

    def on_damaged(path: str, error: Exception) -> None:
        damaged.append(path)
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        print(f"not read: {path_text(path)}: {reason}", file=sys.stderr)

    config = optional_config(arguments)
    weights = weights_of(arguments.weights, config, "predict with")
    predictor = _predictor(arguments, weights, config)
    batches = predictor.stream(
        pictures,
        topk=arguments.topk,
        batch_size=arguments.batch_size,
        activation=_activation(arguments, predictor),
        class_names=arguments.class_names,
        on_damaged=on_damaged,
    )
    first = next(batches, None)
    if first is None:
        raise DataError(f"none of {len(damaged)} pictures could be read" if damaged else "no pictures were given")
    with _opened(output) as stream:
        _print_notes(arguments, weights, predictor)
        for text in FORMATS[format](itertools.chain([first], batches)):
            stream.write(text)
            stream.flush()
    if damaged:
        print(f"{len(damaged)} of {next(given)} pictures could not be read", file=sys.stderr)
        return _NOT_READ
    return 0


def _activation(arguments: argparse.Namespace, predictor: "Predictor") -> Literal["softmax", "sigmoid"]:
    """What makes probabilities of logits: as asked, else as the weights state, else softmax."""
    if arguments.sigmoid or arguments.softmax:
        return "sigmoid" if arguments.sigmoid else "softmax"
    return predictor.card.activation or "softmax"


def _print_notes(arguments: argparse.Namespace, weights: str, predictor: "Predictor") -> None:
    """What a user should know of the predictions: once there are some, not before an error of something else."""
    hint_at_averaged(weights, ema=arguments.ema, file=sys.stderr)
    if predictor.card.activation is None and not (arguments.sigmoid or arguments.softmax):
        print(
            f"note: {predictor.path}: does not say what makes probabilities of its logits; softmax is taken, --sigmoid "
            "takes each class by itself",
            file=sys.stderr,
        )


def _format(asked: str | None, output: Path | None) -> str:
    """What is written: --format, else as --output ends. Raises ConfigError where they contradict each other."""
    ending = output.suffix.lower().lstrip(".") if output else ""
    by_ending = ending if ending in FORMATS else None
    if asked and by_ending and asked != by_ending:
        raise ConfigError(f"--format {asked} and --output {output} contradict each other; leave one out or change it")
    return asked or by_ending or "table"


def _pictures(name: str) -> Iterable[str]:
    """The paths that one argument means: - is a line of standard input each. Raises DataError where it means none."""
    from plsc.data.picture_files import find_pictures

    if name != "-":
        return find_pictures(name)
    lines = (line.rstrip(b"\r\n") for line in sys.stdin.buffer)
    return (os.fsdecode(line) for line in lines if line)


def _predictor(arguments: argparse.Namespace, weights: str, config: "Config | None") -> "Predictor":
    """The predictor that the arguments ask for, on its device."""
    from plsc import environment, runtimes
    from plsc.predictor import load_predictor

    device = arguments.device or (config.Global.device if config else "auto")
    if runtimes.needs_paddle(weights):
        environment.import_paddle()
    return load_predictor(
        weights,
        weights="ema" if arguments.ema else "model",
        img_size=arguments.resolution,
        config=config,
        device=device,
        verify=arguments.verify,
    )


def _opened(output: Path | None) -> contextlib.AbstractContextManager[TextIO]:
    if output is None:
        return contextlib.nullcontext(sys.stdout)
    try:
        return open(output, "w", encoding="utf-8", newline="")
    except OSError as error:
        raise ConfigError(f"--output {output}: cannot be written: {error.strerror}") from error
