"""Name the classes of pictures, by a checkpoint or an export.

How pictures enter the model comes from the checkpoint or export itself. A picture that cannot be read is told
on standard error and left out; the exit code is then 1.
"""

import argparse
import contextlib
import csv
import glob
import itertools
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator

EXAMPLES = """\
  plsc predict --weights output/mine photo.jpg
  plsc predict --weights mine_onnx --topk 3 pictures/ "more/**/*.png"
  find /data -name "*.jpg" | plsc predict --weights output/mine --format jsonl --output found.jsonl -
  plsc predict --weights deit.npz -c DeiT_tiny_patch16_224_eval --class-names imagenet.txt photo.jpg
"""

_NOT_READ = 1  # the exit code where some pictures could not be read
_DIGITS = 4  # of probabilities: runtimes differ in the sixth


def add_arguments(parser):
    from plsc.cli.common import add_config_arguments

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
        type=_above_zero,
        metavar="PIXELS",
        help="another image size; resize and crop change in proportion",
    )
    parser.add_argument(
        "--topk", type=_above_zero, default=5, metavar="K", help="classes a picture (default: %(default)s)"
    )
    parser.add_argument(
        "--sigmoid", action="store_true", help="a probability for each class by itself, for models of several labels"
    )
    parser.add_argument("--class-names", metavar="FILE", help="a name a line, instead of those that the weights hold")
    parser.add_argument(
        "--format", choices=("table", "jsonl", "csv"), default="table", help="what is written (default: %(default)s)"
    )
    parser.add_argument("--output", metavar="FILE", help="where it is written; default: standard output")
    parser.add_argument("--batch-size", type=_above_zero, default=32, metavar="N", help="default: %(default)s")
    parser.add_argument("--device", metavar="NAME", help="cpu, gpu, gpu:1, …; default: a GPU where there is one")


def _above_zero(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def run(arguments) -> int:
    from plsc import environment, predictor
    from plsc.errors import DataError

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
    with _opened(arguments.output) as stream:
        read = _write(arguments, model, batches, stream)
    if not read:
        raise DataError(f"none of {len(damaged)} pictures could be read" if damaged else "no pictures were given")
    if damaged:
        print(f"{len(damaged)} of {len(damaged) + read} pictures could not be read", file=sys.stderr)
        return _NOT_READ
    return 0


def _model(arguments):
    """The predictor that the arguments ask for, on its device."""
    from plsc import environment, predictor, runtimes
    from plsc.cli.common import load_config
    from plsc.errors import CheckpointError, ConfigError

    if arguments.override and not arguments.config:
        raise ConfigError("-o changes a recipe; give one with -c RECIPE")
    config = load_config(arguments.config, arguments.override) if arguments.config else None
    weights = arguments.weights or (config and (config.Global.pretrained_model or config.Global.checkpoint))
    if not weights:
        raise CheckpointError("nothing says what predicts: give --weights PATH or -o Global.pretrained_model=PATH")
    device = arguments.device or (config.Global.device if config else "auto")
    if runtimes.needs_paddle(weights):
        environment.prepare(device=device)
        environment.import_paddle()
        from plsc.engine.distributed import select_device

        select_device(device)
    part = "ema" if arguments.ema else "model"
    model = predictor.load(weights, weights=part, img_size=arguments.resolution, config=config, device=device)
    if arguments.class_names:
        from plsc.data.class_names import read_class_names

        model.class_names = read_class_names(arguments.class_names)
    return model


def _write(arguments, model, batches, stream) -> int:
    """Write the best classes of all pictures; returns how many pictures."""
    from plsc import predictor
    from plsc.errors import DataError

    write, count = _WRITERS[arguments.format](stream), 0
    for paths, logits in batches:
        if arguments.class_names and len(model.class_names) != logits.shape[1]:
            raise DataError(
                f"--class-names {arguments.class_names}: has {len(model.class_names)} names, the model "
                f"{logits.shape[1]} classes"
            )
        shares = predictor.probabilities(logits, sigmoid=arguments.sigmoid)
        write([(path, _best(row, arguments.topk, model)) for path, row in zip(paths, shares, strict=True)])
        stream.flush()
        count += len(paths)
    return count


def _expanded(argument: str) -> Iterable[str]:
    """The paths that one argument means. Raises DataError where it means none."""
    from plsc.errors import DataError

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
    from plsc.errors import DataError

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
    return [(int(index), model.class_name(int(index)), float(shares[index])) for index in order]


def _opened(output: str | None):
    from plsc.errors import ConfigError

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
