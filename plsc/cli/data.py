"""Prepare a data set as shards, read one through for damage, divide one, or see what the model receives.

prepare writes webdataset tar shards with pictures resized once; check names every damaged picture,
duplicate and class imbalance; split writes list files for training and validation; show draws the
pictures after augmentation and mixing.
"""

import argparse
import math
from dataclasses import replace
from pathlib import Path

from plsc.cli.common import above_zero, add_config_arguments, checked_output, config_of, whole
from plsc.data.words import counted
from plsc.errors import ConfigError

EXAMPLES = """\
  plsc data check --folder flowers/train
  plsc data prepare --folder flowers/train --output flowers/shards --short-side 256
  plsc data split --folder flowers --output flowers/lists --val-fraction 0.1
  plsc data check -c my_run.yaml --mode Eval --output report.json
  plsc data show -c my_run.yaml --count 32 --output sheet.png

`plsc data prepare --help` and its like describe each.
"""

_PREPARE = """\
Write a data set as webdataset tar shards with a manifest (count, class histogram, SHA-256 of each shard).

Pictures whose short side is larger than --short-side are resized to it (bicubic, antialiased) and written as
JPEG; smaller RGB JPEGs keep their bytes. Damaged pictures are left out and listed in manifest.json. Labels are
written as the data set gives them: of shards with probabilities, label_mode soft in the recipe keeps these.

A start that was interrupted is continued by the same command. Exit code 1: pictures were left out.
"""

_CHECK = """\
Read and decode every picture of a data set and report what is damaged, double or unusual, and how classes are filled.

Of labels with probabilities (label_mode soft, no label_prob_threshold) it also reports what a least probability
would leave. Exit code 1: pictures are damaged, or labels out of range.
"""

_SPLIT = """\
Divide a folder of class folders, or a list, into train_list.txt and val_list.txt, each class in proportion.

They are the samples that val_fraction with this val_seed in a recipe's data sets leaves for training and takes
for evaluation. Where classes have names, classes.txt has them.
"""

_SHOW = """\
Draw what the model really receives: pictures after transforms, normalisation, Mixup and CutMix, with labels.

Each row is a batch of its own, mixed by its own draw; --copies shows the same pictures in several epochs.
"""


def add_arguments(parser):
    actions = parser.add_subparsers(dest="action", metavar="action", required=True)
    for name, (description, add, action) in _ACTIONS.items():
        command = actions.add_parser(
            name,
            help=description.split("\n", 1)[0].rstrip("."),
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        add(command)
        command.set_defaults(act=action)


def run(arguments) -> int:
    return arguments.act(arguments)


# -- prepare ----------------------------------------------------------------------------------


def _prepare_arguments(parser):
    _add_source(parser)
    parser.add_argument("--output", required=True, metavar="DIR", help="a folder for this data set's shards alone")
    parser.add_argument("--short-side", type=above_zero, default=256, metavar="PIXELS", help="default: 256")
    parser.add_argument("--quality", type=whole(1, 100), default=80, help="of the JPEGs written, 1 to 100; default: 80")
    parser.add_argument(
        "--shard-size",
        type=_shard_size,
        default=1000,
        metavar="N|NMB",
        help="samples of a shard, or followed by MB about its size in 10^6 bytes; default: 1000",
    )
    parser.add_argument(
        "--shuffle",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="mix the order of samples before they are dealt to shards. Training reads the samples of a few shards at "
        "a time, so each shard should hold all classes. Default: --shuffle",
    )
    parser.add_argument("--seed", type=whole(0), default=0, help="of the mixed order; default: 0")
    parser.add_argument("--name", default="shard", help="how the shards' names begin: NAME-000000.tar; default: shard")
    _add_workers(parser)


def _shard_size(text: str) -> int | float:
    """--shard-size: samples, or as a float megabytes."""
    number = text.strip().upper()
    try:
        size = float(number.removesuffix("MB")) if number.endswith("MB") else int(number)
        if not 0 < size < math.inf:
            raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number of samples, nor of megabytes such as 500MB"
        ) from None
    return size


def _prepare(arguments) -> int:
    from plsc import datatools

    source, size = _source(arguments), arguments.shard_size
    settings = datatools.Settings(
        short_side=arguments.short_side,
        quality=arguments.quality,
        shuffle=arguments.shuffle,
        seed=arguments.seed,
        name=arguments.name,
    )
    if isinstance(size, float):
        size = datatools.samples_of(source, size, settings)
    settings = replace(settings, shard_size=size)
    with _progress(source, "preparing") as bar:
        manifest = datatools.prepare(source, arguments.output, settings, workers=arguments.workers, progress=bar.update)
    print(datatools.summary(manifest))
    print(f"see {Path(arguments.output) / 'manifest.json'}")
    return 1 if manifest["skipped"] else 0


# -- check ------------------------------------------------------------------------------------


def _check_arguments(parser):
    _add_source(parser)
    parser.add_argument("--output", metavar="FILE", help="write the whole report, as .json")
    _add_workers(parser)


def _check(arguments) -> int:
    from plsc import datatools
    from plsc.files import write_json

    output = checked_output("--output", arguments.output, (".json",)) if arguments.output else None
    source = _source(arguments)
    with _progress(source, "reading") as bar:
        report = datatools.check(source, workers=arguments.workers, progress=bar.update)
    print(datatools.summary(report))
    if output:
        try:
            write_json(output, {"source": source.description, **report})
        except OSError as error:
            raise ConfigError(f"--output {output}: cannot be written: {error.strerror}") from error
        print(f"written to {output}")
    return 1 if report["damaged"]["count"] or report["labels_out_of_range"]["count"] else 0


# -- split ------------------------------------------------------------------------------------


def _split_arguments(parser):
    _add_files(parser)
    parser.add_argument("--output", required=True, metavar="DIR", help="the folder of the list files")
    parser.add_argument(
        "--val-fraction",
        type=float,
        default=0.1,
        metavar="FRACTION",
        help="of each class, for val_list.txt: at least one picture, where a class has two; default: 0.1",
    )
    parser.add_argument("--seed", type=whole(0), default=0, help="draws the pictures; default: 0")


def _split(arguments) -> int:
    from plsc import datatools

    source = _source(arguments)
    with _progress(source, "writing") as bar:
        counts = datatools.split(
            source, arguments.output, val_fraction=arguments.val_fraction, seed=arguments.seed, progress=bar.update
        )
    for name, count in counts.items():
        print(f"{counted(count, 'picture')} in {Path(arguments.output) / name}")
    root = source.description.get("root", source.description.get("image_root"))
    names = f", class_names: {Path(arguments.output) / 'classes.txt'}" if source.data.class_names else ""
    print(f"in a recipe: name: ImageNetDataset, image_root: {root}, cls_label_path: one of these{names}")
    return 0


# -- show -------------------------------------------------------------------------------------


def _show_arguments(parser):
    add_config_arguments(parser)
    _add_mode(parser)
    parser.add_argument("--count", type=above_zero, default=32, metavar="N", help="pictures on the sheet; default: 32")
    parser.add_argument(
        "--copies",
        type=above_zero,
        default=1,
        metavar="N",
        help="epochs to show of each picture, side by side; default: 1",
    )
    parser.add_argument("--output", default="sheet.png", metavar="FILE", help="a .png or .svg file; default: sheet.png")


def _show(arguments) -> int:
    from plsc.visualize import sheet

    output = checked_output("--output", arguments.output, sheet.ENDINGS)
    config = config_of(arguments)
    from plsc.engine import tracking
    from plsc.visualize.contact_sheet import draw_contact_sheet

    tracking.start_logging(None)
    draw_contact_sheet(config, arguments.mode, output, count=arguments.count, copies=arguments.copies)
    print(f"written to {output}")
    return 0


# -- what they share --------------------------------------------------------------------------


def _add_source(parser):
    add_config_arguments(parser, required=False)
    _add_mode(parser)
    _add_files(parser, "instead of a recipe: ")


def _add_files(parser, instead: str = ""):
    parser.add_argument("--folder", metavar="DIR", help=f"{instead}pictures in one folder a class")
    parser.add_argument("--list", metavar="FILE", help=f"{instead}a list file with one `path label` a line")
    parser.add_argument("--root", metavar="DIR", help="where the paths of --list begin; default: the list's folder")
    parser.add_argument(
        "--delimiter", default=" ", metavar="TEXT", help="between path and label in --list; default: one space"
    )
    parser.add_argument("--multi-label", action="store_true", help="the lines of --list are `path 3,17,240`")


def _add_mode(parser):
    parser.add_argument(
        "--mode", choices=("Train", "Eval"), default="Train", help="which of the recipe's DataLoaders; default: Train"
    )


def _add_workers(parser):
    parser.add_argument(
        "--workers", type=whole(0), metavar="N", help="processes; 0 works in this one; default: one for each core"
    )


def _source(arguments):
    """The plsc.datatools.Source that a command is given."""
    from plsc import datatools

    given = [option for option in ("config", "folder", "list") if vars(arguments).get(option) is not None]
    if len(given) != 1:
        options = "-c RECIPE, --folder DIR and --list FILE" if "mode" in arguments else "--folder DIR and --list FILE"
        raise ConfigError(f"give one of {options}: where the pictures are")
    if arguments.folder:
        return datatools.from_folder(arguments.folder)
    if arguments.list:
        return datatools.from_list(
            arguments.list, arguments.root, delimiter=arguments.delimiter, multi_label=arguments.multi_label
        )
    config = config_of(arguments)
    from plsc.engine import tracking

    tracking.start_logging(None)
    return datatools.from_recipe(config, arguments.mode)


def _progress(source, description: str):
    from plsc.engine.tracking import progress_bar

    return progress_bar(len(source.data), description=description)


_ACTIONS = {
    "prepare": (_PREPARE, _prepare_arguments, _prepare),
    "check": (_CHECK, _check_arguments, _check),
    "split": (_SPLIT, _split_arguments, _split),
    "show": (_SHOW, _show_arguments, _show),
}
