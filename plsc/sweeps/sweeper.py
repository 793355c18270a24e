"""plsc.sweep: runs over many settings and seeds, and which of them is best. Importing it imports no Paddle."""

import json
import shlex
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plsc import environment, files
from plsc.api import load_config
from plsc.config import Config
from plsc.config.source import Overrides
from plsc.engine.run import locked
from plsc.errors import ConfigError
from plsc.runs.compare import of_evaluated_data
from plsc.runs.tables import csv_table, markdown_table, text_table
from plsc.sweeps.journal import Journal, Run, make_runs
from plsc.sweeps.scheduler import OUTPUT, Rungs, Scheduler
from plsc.sweeps.slots import Slot, slots
from plsc.sweeps.space import Drawn, as_mapping, candidates, parse, seeds, short_keys, shown

_ASIDE = ("Global.output_dir", "Global.resume", "Global.checkpoint")  # which the search sets itself


@dataclass(frozen=True)
class Standing:
    """A candidate of a search.

    Attributes:
        values: its settings, without the seed. runs: directories, one a seed.
        scores: figure of each run's last evaluation, where it has one.
        state: done; paused or waiting while it is not; dropped where halving left it out; failed where a run did.
        steps: updates after which the figures were measured. errors: of runs that failed.
    """

    values: Mapping[str, Any]
    runs: tuple[Path, ...]
    scores: tuple[float, ...]
    state: str
    steps: int | None
    errors: tuple[str, ...] = ()

    @property
    def mean(self) -> float | None:
        """Of the scores; None where there are none."""
        return statistics.fmean(self.scores) if self.scores else None

    @property
    def spread(self) -> float | None:
        """The scores' standard deviation; None for fewer than two."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else None


@dataclass(frozen=True)
class SweepResult:
    """The result of a search.

    Attributes:
        folder: with a run directory for each run, sweep.json, table.md and table.csv.
        metric: the figure by which candidates are ranked; None where nothing was evaluated.
        standings: candidates, the best first: those trained to the end, then the dropped, then the failed.
    """

    folder: Path
    metric: str | None
    standings: Sequence[Standing]

    @property
    def best(self) -> Standing | None:
        """The best candidate of those whose runs were all done; None where there is none."""
        first = self.standings[0]
        return first if first.state == "done" and first.scores else None

    @property
    def failed(self) -> int:
        """How many runs failed."""
        return sum(len(standing.errors) for standing in self.standings)

    def text(self) -> str:
        """The standings as a table, the best candidate with its settings, and where the runs are."""
        rows, left = _table(self)
        lines, best = [text_table(rows, left=left)], self.best
        if best is not None:
            settings = " ".join(f"-o {shlex.quote(f'{key}={_plain(value)}')}" for key, value in best.values.items())
            chosen = f" with {settings}" if settings else ""  # only seeds were varied
            over = "" if best.spread is None else f" ± {best.spread:.4f} over {len(best.scores)} seeds"
            lines.append(f"best: {self.metric} {best.mean:.4f}{over}{chosen}\n")
        return "".join([*lines, f"runs, table.md and table.csv: {self.folder}\n"])


def sweep(
    config: str | Path | Mapping[str, Any],
    space: Mapping[str, Any] | Sequence[str],
    *,
    output_dir: str | Path | None = None,
    overrides: Overrides = (),
    imports: Iterable[str] = (),
    trials: int | None = None,
    halving: int | None = None,
    jobs: int | None = None,
    devices: Sequence[str] = (),
    on_change: Callable[[str], None] | None = None,
) -> SweepResult:
    """Run a recipe with many settings, and rank them by their last evaluation.

    Each run is a process and has an ordinary run directory. A search that was killed goes on when it is called again
    with the same arguments: runs that were done are kept, those at work go on from their newest checkpoint, and those
    that failed are tried again. A run that fails does not end the others.

    Args:
        config: a recipe's path or name, or a dict of sections. overrides, imports: as in plsc.load_config, for all.
        space: dotted key → values, as a mapping {"Optimizer.weight_decay": [0.05, 0.1], "LRScheduler.learning_rate":
            {"log": [1e-4, 1e-2]}} or as texts "Optimizer.weight_decay=0.05,0.1", "…=log(1e-4,1e-2)",
            "…=uniform(0,0.5)". Lists make a grid. Values of Global.seed are not candidates, but repeat each of them.
        output_dir: of the search; default: the recipe's with -sweep.
        trials: how often what is drawn at random is drawn.
        halving: successive halving: of the candidates one in so many goes on to so many times the updates.
        jobs: runs at the same time, with an equal share of the cores each; default: one after the other.
        devices: such as gpu:0 and gpu:1, with one run at a time on each, instead of jobs.
        on_change: called with a line of text after each change.

    Raises:
        ConfigError: a candidate cannot be configured, nothing is evaluated, or the folder holds another search.

    Example:
        >>> result = plsc.sweep("digits", ["LRScheduler.learning_rate=1e-3,2e-3", "Global.seed=0,1,2"], jobs=2)
        >>> result.best.values, result.best.mean, result.best.spread
    """
    if environment.launched():
        raise ConfigError("a search starts the processes of its runs itself; call it without paddle.distributed.launch")
    if halving is not None and halving < 2:
        raise ConfigError(f"halving is {halving}; it is the share of candidates that go on, one in 2, 3 or more")
    imports, places = list(imports), slots(jobs, devices)
    dimensions = parse(space)
    for key in dimensions:
        if key in _ASIDE:
            raise ConfigError(f"{key}: is set by the search for each run")
        if of_evaluated_data(key):
            raise ConfigError(f"{key}: candidates are ranked by evaluation, which must be on the same data for all")
    common = as_mapping(overrides)
    points, repeats = candidates(dimensions, trials), seeds(dimensions)
    runs = make_runs(points, repeats)
    checked = [_checked(config, {**common, **run.values}, imports) for run in runs]
    folder = Path(output_dir or f"{checked[0].Global.output_dir.rstrip('/')}-sweep").expanduser().absolute()
    definition = {
        "recipe": _described(checked[0], runs[0]),
        "space": {key: _bounds(values) for key, values in dimensions.items()},
        "trials": trials,
        "halving": halving,
        "imports": imports,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be made: {error.strerror}") from error
    recipe = dict(config) if isinstance(config, Mapping) else str(config)

    def settings(run: Run, slot: Slot) -> dict[str, Any]:
        place = {"Global.output_dir": str(folder / run.name), "Global.resume": "auto"}
        place |= {"Global.device": slot.device} if slot.device else {}
        return {"recipe": recipe, "overrides": {**common, **run.values, **place}, "imports": imports}

    with locked(folder, 0.0, "--output: another search"):
        journal = Journal.open(folder, json.loads(json.dumps(definition)), runs)

        def changed(run: Run) -> None:
            if on_change is not None:
                on_change(_line(scheduler, run))

        scheduler = Scheduler(journal, places, Rungs.of(len(points), halving), settings, changed)
        scheduler.work()
        result = _result(scheduler)
        rows, left = _table(result)
        files.write_text(folder / "table.md", markdown_table(rows, left=left))
        files.write_text(folder / "table.csv", csv_table(rows))
    return result


def _table(result: SweepResult) -> tuple[list[list[str]], list[bool]]:
    """A row a candidate, after a row of titles, and which columns are aligned to the left."""
    keys = list(result.standings[0].values)
    short = short_keys(keys)
    several = any(len(standing.runs) > 1 for standing in result.standings)
    titles = ["", *(short[key] for key in keys), result.metric or "score", *(["spread", "seeds"] if several else [])]
    rows = [[*titles, "updates", "state"]]
    for place, standing in enumerate(result.standings, start=1):
        score = "" if standing.mean is None else f"{standing.mean:.4f}"
        spread = "" if standing.spread is None else f"{standing.spread:.4f}"
        over_seeds = [spread, str(len(standing.scores))] if several else []
        state = standing.state if not standing.errors else f"{standing.state}: {standing.errors[0]}"
        values = [shown(standing.values[key]) for key in keys]
        rows.append([str(place), *values, score, *over_seeds, str(standing.steps or ""), state])
    return rows, [False, *(False for _ in keys), False, *([False, False] if several else []), False, True]


def _checked(config: str | Path | Mapping[str, Any], overrides: Mapping[str, Any], imports: Sequence[str]) -> Config:
    checked = load_config(config, overrides, imports)
    if "Eval" not in checked.DataLoader or checked.Global.eval_during_train is False:
        raise ConfigError("a search ranks runs by their evaluation: DataLoader.Eval and eval_during_train are needed")
    return checked


def _described(config: Config, run: Run) -> dict[str, Any]:
    """The recipe with what all runs share, plain; so that a search notices that it has changed."""
    tree = config.to_dict()
    for key in (*_ASIDE, *run.values):
        at: Any = tree
        *sections, last = key.split(".")
        for part in sections:
            at = at[int(part)] if isinstance(at, list) and part.isdecimal() else at.get(part) if at else None
        if isinstance(at, dict):
            at.pop(last, None)
    return tree


def _plain(value: Any) -> str:
    """As an override on the command line has it."""
    return value if isinstance(value, str) else json.dumps(value)


def _bounds(values: Any) -> Any:
    return {values.kind: [values.low, values.high]} if isinstance(values, Drawn) else list(values)


def _line(scheduler: Scheduler, run: Run) -> str:
    """A change, as it is printed."""
    runs = scheduler.journal.runs
    ended = sum(r.state in ("done", "failed", "dropped") for r in runs)
    begin = f"[{ended}/{len(runs)}] {run.name}: {run.state}"
    if run.state == "failed":
        return f"{begin}: {run.error} (see {scheduler.journal.run_directory(run) / OUTPUT})"
    score = scheduler.score(run) if run.state in ("done", "paused") else None
    return begin if score is None else f"{begin}, {scheduler.metric} {score:.4f} after {run.step} updates"


def _result(scheduler: Scheduler) -> SweepResult:
    journal = scheduler.journal
    standings = []
    for number in dict.fromkeys(run.candidate for run in journal.runs):
        runs = [run for run in journal.runs if run.candidate == number]
        states = [run.state for run in runs]
        state = next((s for s in ("failed", "dropped", "paused", "waiting") if s in states), "done")
        values = {key: value for key, value in runs[0].values.items() if key != "Global.seed"}
        scores = [score for score in map(scheduler.score, runs) if score is not None]
        errors = tuple(run.error for run in runs if run.error)
        steps = max((run.step for run in runs if run.step is not None), default=None)
        folders = tuple(journal.run_directory(run) for run in runs)
        standings.append(Standing(values, folders, tuple(scores), state, steps, errors))
    return SweepResult(journal.folder, scheduler.metric, sorted(standings, key=_place))


def _place(standing: Standing) -> tuple[float, ...]:
    """Sorts the best first; of those that halving left out, the longest trained. Else length is a setting."""
    order = {"done": 0, "paused": 1, "waiting": 1, "dropped": 2, "failed": 3}[standing.state]
    trained = standing.steps or 0 if order == 2 else 0
    return order, -trained, -(standing.mean if standing.mean is not None else float("-inf"))
