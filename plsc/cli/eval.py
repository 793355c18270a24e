"""Measure checkpoints and exports on the data of DataLoader.Eval, every sample exactly once.

Several --weights, --data and --resolution are measured in every combination, a row each. Prints a
table, and writes it as JSON, CSV or Markdown. Without -c the configuration is the one that the
checkpoint was trained with. Weights must fit the model as they are.
"""

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING

from plsc import environment, places
from plsc.cli.common import (
    add_config_arguments,
    add_weights_arguments,
    checked_output,
    hint_at_averaged,
    several_above_zero,
    shortened,
)
from plsc.errors import ConfigError

if TYPE_CHECKING:
    from plsc.engine.evaluation import Evaluation

EXAMPLES = """\
  plsc eval --weights output/digits                      the best checkpoint of a run
  plsc eval --weights output/digits/checkpoints/latest --ema
  plsc eval -c DeiT_tiny_patch16_224_eval --weights deit.npz --resolution 224,288      two image sizes
  plsc eval -c my_run.yaml --weights output/a --weights output/b --output table.md
  plsc eval -c my_run.yaml --weights output/a --data v1=lists/val.txt --data v2=pictures/v2
  plsc eval -c DeiT_tiny_patch16_224_eval --weights deit.onnx --real real.json --metrics ECE
  plsc eval --weights output/digits --per-class classes.csv --confusion confusion.png
  plsc eval -c my_run.yaml -o Global.pretrained_model=output/mine/checkpoints/best
  python -m paddle.distributed.launch --nproc_per_node 2 tools/eval.py --weights output/digits
"""

_TABLES, _CLASSES, _CONFUSION = (".json", ".csv", ".md"), (".csv",), (".csv", ".png", ".svg")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser, required=False)
    add_weights_arguments(parser, exports=True, several=True)
    parser.add_argument(
        "--resolution",
        type=several_above_zero,
        default=[],
        metavar="PIXELS",
        help="evaluate at this image size, or several such as 224,384: the resize and crop of DataLoader.Eval change "
        "in proportion, and the position embedding is resized",
    )
    parser.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="PATH",
        help="another data set for DataLoader.Eval: a folder of class folders, a list file (its paths count from its "
        "folder), or a recipe's .yaml, of which the whole DataLoader.Eval is taken; NAME=PATH names it in the table; "
        "may be given several times",
    )
    parser.add_argument(
        "--metrics",
        type=_names,
        default=[],
        metavar="NAMES",
        help="further metrics (`plsc list metrics`), for instance ECE or mAP,AUC,F1,PrecisionAt1; ConfusionMatrix is "
        "printed, up to 50 classes",
    )
    parser.add_argument(
        "--real", metavar="FILE", help="ImageNet-ReaL's real.json: accuracy on the reassessed labels (RealAcc)"
    )
    parser.add_argument(
        "--per-class", metavar="FILE", help="write samples and accuracy of each class (PerClassAccuracy) as .csv"
    )
    parser.add_argument(
        "--confusion",
        metavar="FILE",
        help="write which class is taken for which (ConfusionMatrix) as .csv, .png or .svg",
    )
    parser.add_argument(
        "--class-names",
        metavar="FILE",
        help="names for --per-class and --confusion, one a line; default: those of the data set or the checkpoint",
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="where the table goes, as .json, .csv or .md; default: evaluation.json in the run directory that the "
        "weights belong to; for other weights the table is printed only",
    )


def _names(text: str) -> list[str]:
    return list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def run(arguments: argparse.Namespace) -> int:
    from plsc.engine.evaluation import evaluate_all
    from plsc.engine.tracking import logging_to

    outputs = _Outputs(arguments)
    with logging_to(None, verbose=environment.rank() == 0):
        results = evaluate_all(
            arguments.weights,
            arguments.config,
            overrides=arguments.override,
            imports=arguments.imports,
            data=_data_sets(arguments.data),
            resolutions=arguments.resolution,
            ema=arguments.ema,
            metrics=outputs.metrics(arguments.metrics),
            real=arguments.real,
            class_names=arguments.class_names,
            verify=arguments.verify,
            on_row=outputs.write,
        )
    if environment.rank() == 0:
        outputs.report(results)
    failed = [result.error is not None for result in results]
    return 2 if all(failed) else int(any(failed))


def _data_sets(texts: list[str]) -> dict[str, str]:
    """--data's NAME=PATH or PATH → name → path."""
    named: dict[str, str] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals or Path(text).exists():
            name = path = text
        if named.setdefault(name, path) != path:
            raise ConfigError(f"--data {text}: another data set has the name {name}")
    return named


class _Outputs:
    """The files and lines that come of rows, on the first process. Files that options name are checked at once."""

    def __init__(self, arguments: argparse.Namespace):
        self.count = math.prod(
            max(1, len(given)) for given in (arguments.weights, arguments.data, arguments.resolution)
        )
        self.ema = arguments.ema
        self.table = arguments.output and checked_output("--output", arguments.output, _TABLES)
        self.classes = arguments.per_class and checked_output("--per-class", arguments.per_class, _CLASSES)
        self.confusion = arguments.confusion and checked_output("--confusion", arguments.confusion, _CONFUSION)
        self.tables: dict[Path, str | None] = {}  # written, → why it could not be

    def metrics(self, names: list[str]) -> list[str]:
        """The metrics that are asked for, and those that files need."""
        return [*names, *["PerClassAccuracy"] * bool(self.classes), *["ConfusionMatrix"] * bool(self.confusion)]

    def write(self, results: "list[Evaluation]") -> None:
        """Write what the newest row brings; the tables after each row, so that an interruption loses none."""
        from plsc.engine import evaluation_files

        newest = results[-1]
        if newest.error is None:
            hint_at_averaged(newest.weights, ema=self.ema)
            self._write_details(newest, len(results))
        for path, rows in self._tables(results).items():
            try:
                evaluation_files.write_table(rows, path, alone=self.count == 1)
                self.tables[path] = None
            except ConfigError as error:
                if path == self.table:
                    raise
                self.tables[path] = str(error)

    def _tables(self, results: "list[Evaluation]") -> "dict[Path, list[Evaluation]]":
        """File → its rows: that of --output, else one in each run directory for the run's own weights."""
        if self.table:
            return {self.table: results}
        tables: dict[Path, list[Evaluation]] = {}
        for result in results:
            run = places.run_directory(result.weights)
            if run is not None:
                tables.setdefault(shortened(run / "evaluation.json"), []).append(result)
        return tables

    def _write_details(self, result: "Evaluation", number: int) -> None:
        """What does not fit into a table: accuracy class by class, and the confusion matrix."""
        from plsc.engine import evaluation_files

        if self.classes:
            path = self._numbered(self.classes, number)
            evaluation_files.write_classes(result, path)
            print(f"written to {path}")
        if result.confusion is None:
            return
        if not self.confusion:
            print(evaluation_files.confusion_text(result.confusion, result.class_names))
            return
        path = self._numbered(self.confusion, number)
        if path.suffix.lower() == ".csv":
            evaluation_files.write_confusion(result, path)
        else:
            from plsc.visualize.confusion import draw_confusion

            names = [evaluation_files.class_name(result.class_names, c) or str(c) for c in range(len(result.confusion))]
            draw_confusion(result.confusion, names, path)
        print(f"written to {path}")

    def _numbered(self, path: Path, number: int) -> Path:
        """The file of one row among several: confusion.csv of the second is confusion-2.csv."""
        return path if self.count == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")

    def report(self, results: "list[Evaluation]") -> None:
        """Print the figures, and the files written."""
        from plsc.engine import evaluation_files

        print(evaluation_files.text(results), end="")
        for path, problem in self.tables.items():
            print(f"written to {path}" if problem is None else f"not written: {problem}")
