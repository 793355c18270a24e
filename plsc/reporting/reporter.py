"""plsc.report: runs as one page."""

import logging
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

import plsc
from plsc import files
from plsc.api import load_config
from plsc.config import Config
from plsc.errors import ConfigError, PlscError
from plsc.reporting import page
from plsc.reporting.analysis import Analysis, analyse
from plsc.runs.compare import Comparison, RunSummary, compare
from plsc.runs.records import last_evaluation, read_metrics
from plsc.visualize import sheet
from plsc.visualize.confusion import confusion_figure
from plsc.visualize.contact_sheet import loaded_cells
from plsc.visualize.curves import curve_figures

log = logging.getLogger("plsc")

_MISTAKES, _SHOWN = 24, 24  # pictures
_MOST_CLASSES = 60  # of the table; the worst of more
_MOST_CONFUSED = 200  # classes of a matrix that can be read


def report(
    runs: Iterable[str | Path],
    output: str | Path = "report.html",
    *,
    samples: int = 10_000,
    imports: Iterable[str] = (),
) -> Path:
    """Write runs as one page of HTML that works offline: results, curves, settings and their differences; of the best
    run accuracy by class, confusion, worst mistakes and samples after augmentation; environment.

    The best run is measured again, on its own evaluation data, with its best checkpoint. What cannot be measured, since
    weights or data are missing, is named in the page.

    Args:
        runs: run directories, or folders of them. output: an .html file.
        samples: of the evaluation data to measure at most, spread over it.
        imports: modules and files that register the run's own components, see plsc.load_config.

    Returns:
        The file that was written.

    Raises:
        DataError: one is not a run directory, or has logged nothing yet.
        ConfigError: the file cannot be written.

    Example:
        >>> plsc.report(["output/digits"], "digits.html")
    """
    output = Path(output)
    comparison = compare(runs)
    best = comparison.best or comparison.runs[0]
    several = len(comparison.runs) > 1
    sections = [
        ("Results", _results(comparison)),
        ("Curves", _curves(comparison)),
        ("Settings", _settings(comparison)),
        *_of_one_run(best, samples, list(imports), several=several),
        ("Environment", _environment(comparison)),
    ]
    title = f"{len(comparison.runs)} runs" if several else f"Run {best.name}"
    now = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    text = page.document(title, f"Written by plsc {plsc.__version__} on {now}.", sections)
    try:
        files.write_text(output, text)
    except OSError as error:
        raise ConfigError(f"{output}: cannot be written: {error.strerror}") from error
    return output


# -- of all runs ------------------------------------------------------------------------------


def _results(comparison: Comparison) -> str:
    rows, left = comparison.figures()
    best = comparison.best
    text = "Figures of the last evaluation, and the best one, which chose the best checkpoint."
    if best is not None and len(comparison.runs) > 1:
        text += f" Best run: {best.name}."
    notes = "".join(page.note(f"Note: {note}.") for note in comparison.notes)
    return page.paragraph(text) + page.table(rows, left=left, caption="Figures of the runs") + notes


def _curves(comparison: Comparison) -> str:
    drawn = []
    for title, figure in curve_figures(run.folder for run in comparison.runs):
        label = f"{title} over updates, {_ends(comparison, title)}"
        drawn.append(page.drawing(sheet.svg(figure, title), label))
    return f'<div class="curves">{"".join(drawn)}</div>'


def _ends(comparison: Comparison, title: str) -> str:
    """What a curve comes to, for those who do not see it."""
    names = ", ".join(run.name for run in comparison.runs[:4])
    return f"of {names}; the figures at its end are in the table of results"


def _settings(comparison: Comparison) -> str:
    parts = []
    if comparison.differences:
        rows, left = comparison.settings()
        parts.append(page.table(rows, left=left, caption="Settings in which the runs differ"))
    elif len(comparison.runs) > 1:
        parts.append(page.paragraph("The configurations do not differ."))
    for run in comparison.runs if len(comparison.runs) == 1 else [comparison.best or comparison.runs[0]]:
        path = run.folder / "config.yaml"
        if path.is_file():
            parts.append(page.details(f"Whole configuration of {run.name}", path.read_text(encoding="utf-8")))
    return "".join(parts)


def _environment(comparison: Comparison) -> str:
    keys = dict.fromkeys(key for run in comparison.runs for key in run.environment)
    if not keys:
        return page.note("No environment.json is there.")
    rows: list[list[object]] = [["", *(run.name for run in comparison.runs)]]
    for key in keys:
        values = [run.environment.get(key) for run in comparison.runs]
        shown = [" ".join(map(str, value)) if isinstance(value, list) else value for value in values]
        rows.append([key.replace("_", " "), *("–" if value is None else value for value in shown)])
    return page.table(rows, left=[True] * len(rows[0]), caption="Environment of the runs")


# -- of the best run ----------------------------------------------------------------------------


def _of_one_run(run: RunSummary, samples: int, imports: list[str], *, several: bool) -> list[tuple[str, str]]:
    """Sections about what one run has learnt, and from what."""
    of = f" of {run.name}" if several else ""
    sections = []
    try:
        config = load_config(run.folder / "config.yaml", imports=imports, run_imports=False)
    except PlscError as error:
        log.warning("%s", error)
        return [(f"Classes and mistakes{of}", page.note(f"Not measured: {error}"))]
    try:
        analysis = analyse(run.folder, config, averaged=_averaged(run), samples=samples, mistakes=_MISTAKES)
    except PlscError as error:
        log.warning("%s", error)
        sections.append((f"Classes and mistakes{of}", page.note(f"Not measured: {error}")))
    else:
        sections += [
            (f"Accuracy by class{of}", _classes(analysis)),
            (f"Confusion{of}", _confusion(analysis)),
            (f"Worst mistakes{of}", _mistakes(analysis)),
        ]
    sections.append((f"Samples after augmentation{of}", _augmented(config)))
    return sections


def _averaged(run: RunSummary) -> bool:
    """Whether the best figure of a run was that of averaged weights."""
    at_best = [record for record in read_metrics(run.folder) if record["step"] == run.best_step]
    figures = {record.get("weights"): record.get(run.metric or "") for record in last_evaluation(at_best)}
    return figures.get("ema") is not None and figures.get("ema") == run.best and figures.get("raw") != run.best


def _classes(analysis: Analysis) -> str:
    counts = analysis.confusion.sum(axis=1)
    right = np.diag(analysis.confusion)
    present = np.flatnonzero(counts)
    order = sorted(present.tolist(), key=lambda c: (right[c] / counts[c], -counts[c]))
    part = "" if analysis.samples == analysis.total else f" of {analysis.total:,}, spread over the data set"
    weights = "averaged weights of " if analysis.averaged else ""
    text = (
        f"{weights}{analysis.weights.parent.name}: top-1 {100 * analysis.accuracy:.2f} % of {analysis.samples:,} "
        f"samples{part}. The worst classes first"
    )
    text += f"; {_MOST_CLASSES} of {len(order)} are shown." if len(order) > _MOST_CLASSES else "."
    rows: list[list[object]] = [["class", "samples", "right", "top-1", "", "most often taken for"]]
    for c in order[:_MOST_CLASSES]:
        share = right[c] / counts[c]
        others = analysis.confusion[c].copy()
        others[c] = 0
        taken = f"{analysis.class_names[int(others.argmax())]} ({others.max()})" if others.any() else ""
        figures = [f"{counts[c]:,}", f"{right[c]:,}", f"{100 * share:.1f} %"]
        rows.append([analysis.class_names[c], *figures, page.bar(float(share)), taken])
    left = [True, False, False, False, True, True]
    return page.paragraph(text) + page.table(rows, left=left, caption="Accuracy by class")


def _confusion(analysis: Analysis) -> str:
    shown = np.count_nonzero(analysis.confusion.sum(axis=0) + analysis.confusion.sum(axis=1))
    if shown > _MOST_CONFUSED:
        return page.paragraph(
            f"A matrix of {shown:,} classes cannot be read; the table above has what they are taken for."
        )
    figure = confusion_figure(analysis.confusion, analysis.class_names)
    wrong = analysis.samples - int(np.trace(analysis.confusion))
    label = f"Confusion matrix, {wrong:,} of {analysis.samples:,} samples off the diagonal"
    text = page.paragraph("A row is a true class, a column the predicted one; colour is the share of the row.")
    return text + page.drawing(sheet.svg(figure, "confusion"), label)


def _mistakes(analysis: Analysis) -> str:
    if not analysis.mistakes:
        return page.paragraph("None: every sample that was measured is right.")
    items = []
    for mistake in analysis.mistakes:
        label, prediction = analysis.class_names[mistake.label], analysis.class_names[mistake.prediction]
        caption = f"{label}, taken for {prediction} ({100 * mistake.probability:.1f} %); sample {mistake.index}"
        items.append((mistake.picture, f"A picture of class {label}", caption))
    text = "Those whose own class was given the least probability, as the model saw them."
    return page.paragraph(text) + page.pictures(items)


def _augmented(config: Config) -> str:
    try:
        cells, shape = loaded_cells(config, "Train", count=_SHOWN)
    except PlscError as error:
        log.warning("%s", error)
        return page.note(f"Not shown: {error}")
    items = [(picture, f"A training picture: {text}", text) for row in cells for picture, text in row]
    text = f"The first pictures of the run's order, {shape}, after transforms and mixing, with their targets."
    return page.paragraph(text) + page.pictures(items)
