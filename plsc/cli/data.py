"""Prepare a data set as shards, read one through for damage, or see what the model receives.

prepare writes webdataset tar shards with pictures resized once; check names every damaged picture,
duplicate and class imbalance; show draws the pictures behind augmentation and mixing.
"""

import argparse
import dataclasses
import json
import os
from pathlib import Path

from plsc.cli.common import add_config_arguments, checked_output, load_config
from plsc.errors import ConfigError, DataError

EXAMPLES = """\
  plsc data check --folder flowers/train
  plsc data prepare --folder flowers/train --output flowers/shards --short-side 256
  plsc data check -c my_run.yaml --mode Eval --output report.json
  plsc data show -c my_run.yaml --count 32 --output sheet.png

`plsc data prepare --help` and so on tell more of each.
"""

_PREPARE = """\
Write a data set as webdataset tar shards with a manifest (count, class histogram, SHA-256 of each shard).

Pictures whose short side is larger than --short-side are resized to it (bicubic, antialiased) and written as
JPEG; smaller RGB JPEGs keep their bytes. Damaged pictures are left out and listed in manifest.json. Labels are
written as the data set gives them: of shards with probabilities, label_mode soft in the recipe keeps these.

A start that was interrupted is continued by the same command. Exit code 1: pictures were left out.
"""

_CHECK = """\
Read and decode every picture of a data set and report what is damaged, double or odd, and how classes are filled.

Of labels with probabilities (label_mode soft, no label_prob_threshold) it also tells what a least probability
would leave. Exit code 1: pictures are damaged, or labels out of range.
"""

_SHOW = """\
Draw what the model really receives: pictures behind transforms, normalisation, Mixup and CutMix, with labels.

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
    parser.add_argument("--short-side", type=int, default=256, metavar="PIXELS", help="default: 256")
    parser.add_argument("--quality", type=int, default=80, help="of the JPEGs written, 1 to 100; default: 80")
    parser.add_argument(
        "--shard-size",
        default="1000",
        metavar="N|NMB",
        help="samples of a shard, or with MB behind it its size in 10^6 bytes, about; default: 1000",
    )
    parser.add_argument(
        "--shuffle",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="mix the order of samples before they are dealt to shards. Training reads the samples of a few shards at "
        "a time, so each shard should hold all classes. Default: --shuffle",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the mixed order; default: 0")
    parser.add_argument("--name", default="shard", help="how the shards' names begin: NAME-000000.tar; default: shard")
    _add_workers(parser)


def _prepare(arguments) -> int:
    from plsc.datatools.prepare import MANIFEST, Settings, prepare, samples_of

    data, source, _ = _source(arguments)
    size, megabytes = _shard_size(arguments.shard_size)
    settings = Settings(
        short_side=arguments.short_side,
        quality=arguments.quality,
        shard_size=size,
        shuffle=arguments.shuffle,
        seed=arguments.seed,
        name=arguments.name,
    )
    if megabytes:
        settings = dataclasses.replace(settings, shard_size=samples_of(data, megabytes, settings))
    with _progress(len(data), "preparing") as bar:
        manifest = prepare(
            data, arguments.output, settings, source=source, workers=_workers(arguments), progress=bar.update
        )
    skipped = manifest["skipped"]
    _print_damaged(skipped, len(skipped))
    left_out = f", {len(skipped):,} damaged pictures left out" if skipped else ""
    print(
        f"{manifest['count']:,} samples in {len(manifest['shards']):,} shards, {manifest['bytes'] / 1e6:,.1f} MB"
        f"{left_out}; see {Path(arguments.output) / MANIFEST}"
    )
    return 1 if skipped else 0


def _shard_size(text: str) -> tuple[int, float | None]:
    """--shard-size → (samples, megabytes); megabytes where the text ends in MB."""
    number = text.strip().upper()
    try:
        if number.endswith("MB"):
            megabytes = float(number.removesuffix("MB"))
            if not 0 < megabytes < float("inf"):
                raise ValueError
            return 1, megabytes
        return int(number), None
    except ValueError:
        raise ConfigError(f"--shard-size is {text!r}; give a number of samples, or megabytes such as 500MB") from None


# -- check ------------------------------------------------------------------------------------


def _check_arguments(parser):
    _add_source(parser)
    parser.add_argument("--output", metavar="FILE", help="write the whole report, as .json")
    _add_workers(parser)


def _check(arguments) -> int:
    from plsc.datatools.inspect import inspect

    output = checked_output("--output", arguments.output, (".json",)) if arguments.output else None
    data, source, class_num = _source(arguments)
    with _progress(len(data), "reading") as bar:
        report = inspect(data, class_num=class_num, workers=_workers(arguments), progress=bar.update)
    _print_report(report)
    if output:
        _write_report({"source": source, **report}, output)
    return 1 if report["damaged"]["count"] or report["labels_out_of_range"]["count"] else 0


def _write_report(report: dict, output: Path):
    try:
        output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--output {output}: cannot be written: {error.strerror}") from error
    print(f"written to {output}")


_SHOWN = 20  # of a long list; the JSON has more


def _print_report(report: dict):
    print(f"{report['samples']:,} samples, {report['readable']:,} of them readable")
    for kind, count in report["kinds"].items():
        print(f"  {count:>9,}  {kind}")
    if report["sizes"]:
        print("pixels             min   median      max")
        for side, of in report["sizes"].items():
            print(f"  {side.replace('_', ' '):<12} {of['min']:>7,} {of['median']:>8,.0f} {of['max']:>8,}")
    for remark, found in report["oddities"].items():
        _say(f"{found['count']:,} x {remark}: {_some(found['examples'], found['count'], 3)}")
    _print_classes(report["classes"])
    _print_duplicates(report["duplicates"])
    damaged, beyond = report["damaged"], report["labels_out_of_range"]
    _print_damaged(damaged["examples"], damaged["count"])
    if damaged["count"] > len(damaged["examples"]):
        print(f"damaged pictures are counted; the report lists the first {len(damaged['examples']):,}")
    for found in beyond["examples"]:
        _say(f"label out of range: {found['name']}: {found['label']}")
    _print_rest(beyond["count"] - len(beyond["examples"]))
    if report["thresholds"]:
        print("label probability   labels per kept picture   pictures kept")
        for row in report["thresholds"]:
            print(f"  at least {row['threshold']:.2f} {row['labels_per_kept']:>20.2f} {100 * row['kept']:>21.1f} %")


def _print_classes(classes: dict):
    counts, names = classes["counts"], classes["names"]

    def named(label: int) -> str:
        return names[label] if names is not None and label < len(names) else f"class {label}"

    if classes["ratio"] is None:
        return
    smallest, largest = classes["smallest"], classes["largest"]
    if counts[smallest] == counts[largest]:
        print(f"{len(counts):,} classes, none with more pictures than {counts[largest]:,}")
    else:
        _say(
            f"{len(counts):,} classes: the smallest is {named(smallest)} with {counts[smallest]:,}, the largest "
            f"{named(largest)} with {counts[largest]:,}, {classes['ratio']:.1f} times as many"
        )
    empty = classes["empty"]
    if empty:
        _say(f"{len(empty):,} classes are empty: {_some([named(label) for label in empty], len(empty), 10)}")


def _print_duplicates(groups: list[dict]):
    if not groups:
        return
    extra = sum(len(group["pictures"]) - 1 for group in groups)
    across = [group for group in groups if group["across_classes"]]
    print(f"{len(groups):,} pictures are there more than once, {extra:,} copies in all", end="")
    print(f"; {len(across):,} of them with different labels" if across else "")
    for group in sorted(groups, key=lambda group: not group["across_classes"])[:_SHOWN]:
        remark = "different labels: " if group["across_classes"] else ""
        _say(f"  {remark}{' = '.join(group['pictures'])}")
    _print_rest(len(groups) - _SHOWN)


def _print_damaged(found: list[dict], count: int):
    shown = found[:_SHOWN]
    for picture in shown:
        _say(f"damaged: {picture['reason']}")
    _print_rest(count - len(shown))


def _print_rest(count: int):
    if count > 0:
        print(f"  … and {count:,} more")


def _say(text: str):
    """Print a line with names of files, whose bytes need not be text."""
    print(text.encode("utf-8", "backslashreplace").decode())


def _some(names: list[str], count: int, most: int) -> str:
    return ", ".join(names[:most]) + (", …" if count > most else "")


# -- show -------------------------------------------------------------------------------------


def _show_arguments(parser):
    add_config_arguments(parser)
    _add_mode(parser)
    parser.add_argument("--count", type=int, default=32, metavar="N", help="pictures on the sheet; default: 32")
    parser.add_argument(
        "--copies", type=int, default=1, metavar="N", help="epochs to show of each picture, side by side; default: 1"
    )
    parser.add_argument("--output", default="sheet.png", metavar="FILE", help="a .png or .svg file; default: sheet.png")


def _show(arguments) -> int:
    from plsc.visualize import sheet

    output = checked_output("--output", arguments.output, sheet.ENDINGS)
    for name in ("count", "copies"):
        if getattr(arguments, name) < 1:
            raise ConfigError(f"--{name} is {getattr(arguments, name)}; it must be at least 1")
    config = load_config(arguments.config, arguments.override, arguments.imports)
    _section(config, arguments.mode)
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
    parser.add_argument("--folder", metavar="DIR", help="instead of a recipe: pictures in one folder a class")
    parser.add_argument("--list", metavar="FILE", help="instead of a recipe: a list file with one `path label` a line")
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
        "--workers", type=int, metavar="N", help="processes; 0 works in this one; default: one for each core"
    )


def _workers(arguments) -> int:
    from plsc import environment

    workers = environment.available_cores() if arguments.workers is None else arguments.workers
    if workers < 0:
        raise ConfigError(f"--workers is {workers}; it cannot be negative")
    return workers


def _source(arguments) -> tuple:
    """(data set, what it is as plain values, number of classes where a recipe says it)."""
    given = [name for name in ("config", "folder", "list") if getattr(arguments, name) is not None]
    if len(given) != 1:
        raise ConfigError("say where the pictures are with one of -c RECIPE, --folder DIR and --list FILE")
    if arguments.config:
        data, source, class_num = _recipe_source(arguments)
    else:
        data, source = _folder_source(arguments.folder) if arguments.folder else _list_source(arguments)
        class_num = None
    if len(data) == 0:
        raise DataError(f"{source['dataset']}: holds no samples")
    return data, source, class_num


def _recipe_source(arguments) -> tuple:
    config = load_config(arguments.config, arguments.override, arguments.imports)
    section = _section(config, arguments.mode)
    from plsc import build
    from plsc.engine import tracking
    from plsc.registry import DATASETS

    tracking.start_logging(None)
    data = build.component(config, DATASETS, section.dataset)
    described = config.to_dict()["DataLoader"][arguments.mode]["dataset"]
    source = {key: value for key, value in described.items() if not key.endswith("transform_ops")}
    return data, {"dataset": source.pop("name"), **source}, build.class_num(config)


def _section(config, mode: str):
    if mode not in config.DataLoader:
        raise ConfigError(f"DataLoader.{mode} is missing in the recipe")
    return config.DataLoader[mode]


def _folder_source(folder: str) -> tuple:
    from plsc.data.datasets import ImageFolder

    return ImageFolder(folder), {"dataset": "ImageFolder", "root": os.path.abspath(folder)}


def _list_source(arguments) -> tuple:
    from plsc.data.datasets import ImageNetDataset

    if not arguments.delimiter:
        raise ConfigError("--delimiter is empty; it is what stands between path and label")
    root = arguments.root or str(Path(arguments.list).parent)
    how = {"delimiter": arguments.delimiter, "multi_label": arguments.multi_label}
    data = ImageNetDataset(root, arguments.list, **how)
    places = {"image_root": os.path.abspath(root), "cls_label_path": os.path.abspath(arguments.list)}
    return data, {"dataset": "ImageNetDataset", **places, **how}


def _progress(total: int, description: str):
    from plsc.engine.tracking import progress_bar

    return progress_bar(total, description=description)


_ACTIONS = {
    "prepare": (_PREPARE, _prepare_arguments, _prepare),
    "check": (_CHECK, _check_arguments, _check),
    "show": (_SHOW, _show_arguments, _show),
}
