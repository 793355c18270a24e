"""Name the classes of pictures, by a checkpoint or an export.

How pictures enter the model comes from the checkpoint or export itself; -c RECIPE is asked only where that does
not say it. A picture that cannot be read is told
on standard error and left out; the exit code is then 1.
"""

import contextlib
import csv
import dataclasses
import glob
import itertools
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from plsc.cli.common import (
    above_zero,
    add_config_arguments,
    checked_output,
    hint_at_averaged,
    optional_config,
    weights_of,
)
from plsc.errors import ConfigError, DataError

EXAMPLES = """\
  plsc predict --weights output/mine photo.jpg
  plsc predict --weights mine_onnx --topk 3 pictures/ "more/**/*.png"
  find /data -name "*.jpg" | plsc predict --weights output/mine --output found.jsonl -
  plsc predict --weights deit.npz -c DeiT_tiny_patch16_224_eval --class-names imagenet.txt photo.jpg
"""

_NOT_READ = 1  # the exit code where some pictures could not be read
_DIGITS = 4  # of probabilities: runtimes differ in the sixth


def add_arguments(parser):
    parser.add_argument(
        "pictures",
        nargs="+",
        metavar="IMAGE|FOLDER|GLOB",
        help="pictures; folders are read with those below them, quoted patterns are expanded, - takes paths from "
        "standard input, one a line",
    )
    parser.add_argument(
        "--weights",
        metavar="PATH",
        help="a run directory, a checkpoint, an export, or anybody's weights (docs/checkpoints.md); default: "
        "Global.pretrained_model",
    )
    add_config_arguments(parser, required=False)
    parser.add_argument("--ema", action="store_true", help="the averaged weights of the checkpoint")
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
        help="probabilities that sum to one; default: as the loss that the model was trained with, where nothing says "
        "it softmax",
    )
    parser.add_argument("--class-names", metavar="FILE", help="a name a line, instead of those that the weights hold")
    parser.add_argument(
        "--format",
        choices=tuple(_WRITERS),
        help="what is written; default: as --output ends, .csv or .jsonl, else table",
    )
    parser.add_argument("--output", metavar="FILE", help="where it is written; default: standard output")
    parser.add_argument("--batch-size", type=above_zero, default=32, metavar="N", help="default: %(default)s")
    parser.add_argument("--device", metavar="NAME", help="cpu, gpu, gpu:1, …; default: a GPU where there is one")


def run(arguments) -> int:
    from plsc import environment, predictor

    output = checked_output("--output", arguments.output) if arguments.output else None
    format = _format(arguments.format, output)
    paths = itertools.chain.from_iterable([_expanded(argument) for argument in arguments.pictures])
    model = _model(arguments)
    damaged = []

    def on_damaged(path: str, error: Exception):
        damaged.append(path)
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        print(f"not read: {_shown(path)}: {reason}", file=sys.stderr)

    batches = predictor.predictions(
        model,
        paths,
        batch_size=arguments.batch_size,
        workers=min(4, environment.thread_count()),
        on_damaged=on_damaged,
    )
    first = next(batches, None)
    if first is None:
        raise DataError(f"none of {len(damaged)} pictures could be read" if damaged else "no pictures were given")
    if arguments.class_names:
        from plsc.data.class_names import read_class_names

        names = read_class_names(arguments.class_names, first[1].shape[1])
        model.card = dataclasses.replace(model.card, class_names=names)
    with _opened(output) as stream:
        read = _write(_WRITERS[format](stream), arguments, model, itertools.chain([first], batches), stream)
    if damaged:
        print(f"{len(damaged)} of {len(damaged) + read} pictures could not be read", file=sys.stderr)
        return _NOT_READ
    return 0


def _format(asked: str | None, output: Path | None) -> str:
    """What is written: --format, else as --output ends. Raises ConfigError where they contradict each other."""
    ending = output.suffix.lower().lstrip(".") if output else ""
    said = ending if ending in _WRITERS else None
    if asked and said and asked != said:
        raise ConfigError(f"--format {asked} and --output {output} contradict each other; leave one out or change it")
    return asked or said or "table"


def _model(arguments):
    """The predictor that the arguments ask for, on its device."""
    from plsc import environment, predictor, runtimes

    config = optional_config(arguments)
    weights = weights_of(arguments.weights, config, "predict with")
    device = arguments.device or (config.Global.device if config else "auto")
    if runtimes.needs_paddle(weights):
        environment.prepare(device=device)
        environment.import_paddle()
        from plsc.engine.distributed import select_device

        select_device(device)
    part = "ema" if arguments.ema else "model"
    model = predictor.load_predictor(weights, weights=part, img_size=arguments.resolution, config=config, device=device)
    hint_at_averaged(weights, ema=arguments.ema, file=sys.stderr)
    return model


def _write(write, arguments, model, batches, stream) -> int:
    """Write the best classes of all pictures; returns how many pictures."""
    from plsc import predictor

    count = 0
    for paths, logits in batches:
        sigmoid = arguments.sigmoid or (model.card.activation == "sigmoid" and not arguments.softmax)
        shares = predictor.probabilities(logits, sigmoid=sigmoid)
        write([(path, _best(row, arguments.topk, model)) for path, row in zip(paths, shares, strict=True)])
        stream.flush()
        count += len(paths)
    return count


def _expanded(argument: str) -> Iterable[str]:
    """The paths that one argument means. Raises DataError where it means none."""
    if argument == "-":
        return _lines(sys.stdin.buffer)
    if os.path.isdir(argument):
        return _in_folder(argument)
    if os.path.exists(argument):
        return [argument]
    if glob.has_magic(argument):
        found = [path for path in glob.glob(argument, recursive=True) if os.path.isfile(path)]
        if not found:
            raise DataError(f"{argument}: no file has such a name (looked in {os.getcwd()})")
        return sorted(found, key=_natural)
    raise DataError(f"{argument}: no such file or folder (looked in {os.getcwd()})")


def _in_folder(folder: str) -> list[str]:
    from plsc.data.datasets.image_folder import EXTENSIONS

    found = [
        os.path.join(place, name)
        for place, _, names in os.walk(folder, followlinks=True)
        for name in names
        if name.lower().endswith(EXTENSIONS)
    ]
    if not found:
        raise DataError(f"{folder}: holds no pictures ending in {', '.join(EXTENSIONS)}")
    return sorted(found, key=_natural)


def _natural(path: str) -> list:
    """Sorts 2.jpg before 10.jpg."""
    return [int(part) if part.isdecimal() else part for part in re.split("([0-9]+)", path)]


def _lines(stream) -> Iterator[str]:
    for line in stream:
        line = line.rstrip(b"\r\n")
        if line:
            yield os.fsdecode(line)


def _shown(path: str) -> str:
    """A path as text, also where its bytes are none."""
    return os.fsencode(path).decode("utf-8", "replace")


def _best(shares, topk: int, model) -> list[tuple[int, str, float]]:
    """The most probable classes of one picture; of equal ones the lower number first."""
    order = (-shares).argsort(kind="stable")[:topk]
    return [(int(index), model.card.class_name(int(index)), float(shares[index])) for index in order]


def _opened(output: Path | None):
    if output is None:
        return contextlib.nullcontext(sys.stdout)
    try:
        return open(output, "w", encoding="utf-8", newline="")
    except OSError as error:
        raise ConfigError(f"--output {output}: cannot be written: {error.strerror}") from error


def _json_lines(stream):
    def write(records):
        for path, best in records:
            found = [
                {"class": index, "name": name, "probability": round(share, _DIGITS)} for index, name, share in best
            ]
            stream.write(json.dumps({"image": path, "predictions": found}) + "\n")

    return write


def _csv(stream):
    table = csv.writer(stream, lineterminator="\n")
    table.writerow(["image", "rank", "class", "name", "probability"])

    def write(records):
        for path, best in records:
            for rank, (index, name, share) in enumerate(best, start=1):
                table.writerow([_shown(path), rank, index, name, f"{share:.{_DIGITS}f}"])

    return write


def _table(stream):
    """Columns as wide as the first batch needs."""
    widths = []

    def write(records):
        rows = [
            [_shown(path), *(f"{_first_name(name)} {share:.2%}" for _, name, share in best)] for path, best in records
        ]
        if not widths:
            widths.extend(max(map(len, column)) for column in zip(*rows, strict=True))
        for row in rows:
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            stream.write("  ".join(cells).rstrip() + "\n")

    return write


def _first_name(name: str) -> str:
    """ImageNet's classes have several names, separated by commas."""
    return name.split(",")[0]


_WRITERS = {"table": _table, "jsonl": _json_lines, "csv": _csv}
