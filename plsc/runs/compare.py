"""plsc.compare: runs side by side, by their figures and by what differs in their configurations."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plsc import files, places
from plsc.config.yaml_tree import parse_file
from plsc.errors import ConfigError
from plsc.runs.records import best_metric, check_runs, last_evaluation, read_metrics, run_folders, run_names
from plsc.runs.tables import csv_table, markdown_table, text_table

ENDINGS = (".md", ".csv")

# what differs between any two runs, or tells nothing of them
_ASIDE = ("Global.output_dir", "Global.resume", "Global.checkpoint")
_EVALUATED_DATA = "DataLoader.Eval.dataset."
# keys of it that choose no other samples
_SAME_SAMPLES = ("transform_ops", "download", "class_names", "cache_dir", "cache_gigabytes")
_FRACTIONS_SHOWN = 2  # decimals of a percentage


@dataclass(frozen=True)
class RunSummary:
    """One run.

    Attributes:
        name: as short as it distinguishes the runs. folder: its run directory.
        step: of the last update that was logged.
        final: figures of the last evaluation, those of averaged weights with the prefix ema_. samples: it counted.
        metric: the figure by which the best checkpoint was chosen; best, best_step: its highest value and where it was.
        images_per_second: median of what was logged.
        config: dotted key → value, of config.yaml. environment: environment.json; empty where there is none.
    """

    name: str
    folder: Path
    step: int
    final: Mapping[str, float]
    samples: int | None
    metric: str | None
    best: float | None
    best_step: int | None
    images_per_second: float | None
    config: Mapping[str, Any]
    environment: Mapping[str, Any]


@dataclass(frozen=True)
class Comparison:
    """Runs side by side.

    Attributes:
        runs: in the order given. differences: dotted key → value of each run, where these are not all alike; None where
            a run does not have the key.
    """

    runs: Sequence[RunSummary]
    differences: Mapping[str, Sequence[Any]]

    @property
    def best(self) -> RunSummary | None:
        """The run with the highest best figure, where all were measured by the same one, on as many samples."""
        measured = [run for run in self.runs if run.best is not None]
        if not measured or len({(run.metric, run.samples) for run in measured}) > 1:
            return None
        return max(measured, key=lambda run: run.best or 0.0)

    @property
    def notes(self) -> list[str]:
        """What makes the figures hard to compare: that runs were evaluated on different data."""
        notes = []
        counts = [run.samples for run in self.runs if run.samples is not None]
        if len(set(counts)) > 1:
            each = ", ".join(f"{count:,}" for count in counts)
            notes.append(f"the runs were evaluated on different numbers of samples ({each}): they do not compare")
        keys = [key for key in self.differences if of_evaluated_data(key)]
        if keys:
            notes.append(
                f"the runs name different evaluation data ({', '.join(keys)}): they compare only where these are "
                "the same samples"
            )
        return notes

    def figures(self) -> tuple[list[list[str]], list[bool]]:
        """A table of the figures, titles first, and which columns are aligned to the left."""
        names = list(dict.fromkeys(name for run in self.runs for name in run.final))
        metrics = {run.metric for run in self.runs if run.metric}
        best = f"best {next(iter(metrics))}" if len(metrics) == 1 else "best"
        rows = [["run", "updates", *names, best, "at update", "images/s"]]
        for run in self.runs:
            speed = "" if run.images_per_second is None else f"{run.images_per_second:,.1f}"
            at = "" if run.best_step is None else f"{run.best_step:,}"
            final = [_shown_figure(name, run.final.get(name)) for name in names]
            rows.append([run.name, f"{run.step:,}", *final, _shown_figure(run.metric or "", run.best), at, speed])
        return rows, [True, *(False for _ in rows[0][1:])]

    def settings(self) -> tuple[list[list[str]], list[bool]]:
        """A table of what differs in the configurations: a row a key, a column a run."""
        rows = [["key", *(run.name for run in self.runs)]]
        rows += [[key, *map(_shown_value, values)] for key, values in self.differences.items()]
        return rows, [True] * len(rows[0])

    def text(self) -> str:
        """Both tables and the notes, as a terminal shows them."""
        parts = [text_table(self.figures()[0], left=self.figures()[1])]
        if self.differences:
            parts.append(text_table(self.settings()[0], left=self.settings()[1]))
        parts += [f"note: {note}\n" for note in self.notes]
        return "\n".join(parts)

    def markdown(self) -> str:
        """Both tables and the notes as Markdown."""
        parts = [markdown_table(self.figures()[0], left=self.figures()[1])]
        if self.differences:
            parts.append(markdown_table(self.settings()[0], left=self.settings()[1]))
        parts += [f"Note: {note}.\n" for note in self.notes]
        return "\n".join(parts)

    def csv(self) -> str:
        """One table: a row a run, its figures and the settings that differ, as they are."""
        names = list(dict.fromkeys(name for run in self.runs for name in run.final))
        measured = ["samples", "metric", "best", "best_step", "images_per_second"]
        titles = ["run", "step", *names, *measured, *self.differences]
        rows: list[list[Any]] = [titles]
        for number, run in enumerate(self.runs):
            figures = [run.final.get(name) for name in names]
            settings = [values[number] for values in self.differences.values()]
            best = [run.samples, run.metric, run.best, run.best_step, run.images_per_second]
            rows.append([run.name, run.step, *figures, *best, *settings])
        return csv_table(rows)

    def write(self, path: str | Path) -> None:
        """Write it as .md or .csv, by the ending. Raises ConfigError where it has another, or cannot be written."""
        path = Path(path)
        if path.suffix.lower() not in ENDINGS:
            raise ConfigError(f"{path}: is written as {', '.join(ENDINGS)}; end the name so")
        try:
            files.write_text(path, self.csv() if path.suffix.lower() == ".csv" else self.markdown())
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error


def compare(runs: Iterable[str | Path]) -> Comparison:
    """Put runs side by side: their figures, and what differs in their configurations.

    Args:
        runs: run directories, also of runs that are still at work; or folders of them, such as a search's.

    Raises:
        DataError: one is not a run directory, or has logged nothing yet.

    Example:
        >>> comparison = plsc.compare(["output/first", "output/second"])
        >>> print(comparison.text())
        >>> comparison.best.name, comparison.differences
    """
    folders = run_folders(runs)
    check_runs(folders)
    summaries = [_summary(name, folder) for name, folder in run_names(folders).items()]
    keys = dict.fromkeys(key for run in summaries for key in run.config)
    differences = {}
    for key in keys:
        values = [run.config.get(key) for run in summaries]
        if key not in _ASIDE and any(value != values[0] for value in values[1:]):
            differences[key] = values
    return Comparison(summaries, differences)


def of_evaluated_data(key: str) -> bool:
    """Whether a dotted key of a configuration chooses the samples of its evaluation; so do the sections above them."""
    if _EVALUATED_DATA.startswith(f"{key}."):
        return True
    inside = key.removeprefix(_EVALUATED_DATA)
    return inside != key and inside.split(".")[0] not in _SAME_SAMPLES


def _summary(name: str, folder: Path) -> RunSummary:
    records = read_metrics(folder)
    speeds = [record["images_per_second"] for record in records if "images_per_second" in record]
    final: dict[str, float] = {}
    evaluated = last_evaluation(records)
    for record in evaluated:
        prefix = "" if record.get("weights", "raw") == "raw" else f"{record['weights']}_"
        left_out = ("kind", "step", "epoch", "weights", "samples")
        final |= {f"{prefix}{key}": value for key, value in record.items() if key not in left_out}
    metric = best_metric(folder)
    measured = [(r[metric], r["step"]) for r in records if r["kind"] == "eval" and metric and metric in r]
    best, best_step = max(measured, key=lambda pair: pair[0], default=(None, None))
    return RunSummary(
        name=name,
        folder=folder,
        step=records[-1]["step"],
        final=final,
        samples=evaluated[-1].get("samples") if evaluated else None,
        metric=metric,
        best=best,
        best_step=best_step,
        images_per_second=statistics.median(speeds) if speeds else None,
        config=_flat(_recipe(folder)),
        environment=files.read_json(folder / "environment.json", dict, error=ConfigError) or {},
    )


def _recipe(folder: Path) -> dict[str, Any]:
    path = folder / places.RECIPE
    return parse_file(path, str(path))[0] if path.is_file() else {}


def differences(first: Any, second: Any) -> dict[str, tuple[Any, Any]]:
    """Dotted keys in which two nested mappings differ → both values; None where one has no such key."""
    one, other = _flat(first), _flat(second)
    pairs = {key: (one.get(key), other.get(key)) for key in dict.fromkeys([*one, *other])}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def changed_settings(folder: Path, now: Any) -> dict[str, tuple[Any, Any]]:
    """Settings that a run has now and had not in a run directory or checkpoint: dotted key → before, now.

    Empty where the folder has no config.yaml.
    """
    before = _recipe(folder)
    changed = differences(before, now) if before else {}
    return {key: pair for key, pair in changed.items() if key not in _ASIDE}


def _flat(tree: Any, path: tuple[str, ...] = ()) -> dict[str, Any]:
    """Nested mappings and lists → dotted key → value; what is empty is a value."""
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(tree, dict):
        items = tree.items()
    elif isinstance(tree, list) and any(isinstance(item, (dict, list)) for item in tree):
        items = enumerate(tree)
    flat: dict[str, Any] = {}
    for key, value in items:
        flat |= _flat(value, (*path, str(key)))
    return flat or ({".".join(path): tree} if path else {})


def _shown_figure(name: str, value: float | None) -> str:
    """As a reader wants it: accuracies in percent."""
    if value is None:
        return ""
    base = name.removeprefix("ema_")
    if base.startswith(("top", "precision_at", "mAP", "auc", "f1", "mean_class_top1", "real_top")) and 0 <= value <= 1:
        return f"{100 * value:.{_FRACTIONS_SHOWN}f} %"
    return f"{value:.4g}" if float(value).is_integer() else f"{value:#.4g}"


def _shown_value(value: Any) -> str:
    return "–" if value is None else str(value)
