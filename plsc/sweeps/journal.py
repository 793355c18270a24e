"""sweep.json: what a search consists of and how far it is, replaced whole after each change."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from plsc import files
from plsc.errors import ConfigError
from plsc.runs.compare import differences
from plsc.sweeps.space import SEED, short_keys, shown

NAME = "sweep.json"
SETTINGS = "sweep-run.json"  # in a run's folder: its recipe, overrides and imports
State = Literal["waiting", "running", "paused", "done", "failed", "dropped"]

_FORMAT = 1
_LONGEST = 120  # letters of a folder's name


@dataclass
class Run:
    """One run of a search.

    Attributes:
        name: of its folder in the search's. candidate: its number. values: its settings, the seed among them.
        state: paused: trained as far as its rung goes; dropped: left out by halving after that.
        rung: of halving, up to which it has been trained; -1 before the first.
        figures: name → figure of its last evaluation. step: of that. error: why it failed.
    """

    name: str
    candidate: int
    values: dict[str, Any]
    state: State = "waiting"
    rung: int = -1
    figures: dict[str, float] = field(default_factory=dict)
    step: int | None = None
    error: str | None = None


@dataclass
class Journal:
    """A search in its folder.

    Attributes:
        definition: what it was asked to be, plain; a search goes on only as the same.
    """

    folder: Path
    definition: Mapping[str, Any]
    runs: list[Run]

    @property
    def path(self) -> Path:
        return self.folder / NAME

    def run_directory(self, run: Run) -> Path:
        """Its Global.output_dir."""
        return self.folder / run.name

    def save(self) -> None:
        """Write it, whole or not at all. Raises ConfigError where it cannot be written."""
        content = {"format": _FORMAT, "definition": self.definition, "runs": [asdict(run) for run in self.runs]}
        try:
            files.write_json(self.path, content)
        except OSError as error:
            raise ConfigError(f"{self.path}: cannot be written: {error.strerror}") from error

    @classmethod
    def open(cls, folder: Path, definition: Mapping[str, Any], runs: Sequence[Run]) -> "Journal":
        """The search of a folder: as it is there, or a new one.

        Raises:
            ConfigError: the folder holds another search, or a journal that is damaged.
        """
        fresh = cls(folder, definition, list(runs))
        content = files.read_json(fresh.path, dict, error=ConfigError)
        if content is None:
            fresh.save()
            return fresh
        if content.get("format") != _FORMAT:
            raise ConfigError(f"{fresh.path}: is of format {content.get('format')}, this plsc reads {_FORMAT}")
        before = content.get("definition")
        different = differences(before if isinstance(before, dict) else {}, definition)
        if different:  # a setting that is null is as one that is absent
            raise ConfigError(
                f"{folder} holds another search, which differs in {', '.join(different)}; choose another folder with "
                "--output, or give what it was begun with"
            )
        return cls(folder, definition, [_run(item, fresh.path) for item in content.get("runs", ())])


def _run(item: Any, path: Path) -> Run:
    try:
        run = Run(**item)
    except TypeError as error:
        raise ConfigError(f"{path}: damaged: {error}") from error
    if run.state not in get_args(State):
        raise ConfigError(f"{path}: damaged: a run has the state {run.state!r}")
    return run


def make_runs(candidates: Sequence[Mapping[str, Any]], seeds: Sequence[int] | None) -> list[Run]:
    """A run for each candidate and seed, with a name that tells them apart."""
    repeats: list[dict[str, Any]] = [{}] if seeds is None else [{SEED: seed} for seed in seeds]
    settings = [(n, {**candidate, **repeat}) for n, candidate in enumerate(candidates) for repeat in repeats]
    short = short_keys(list(settings[0][1]))
    width = len(str(len(settings)))
    runs = []
    for place, (number, values) in enumerate(settings, start=1):
        text = "-".join(f"{short[key]}={shown(value)}" for key, value in values.items())
        safe = re.sub(r"[^\w.=+-]+", "_", text)[:_LONGEST]
        runs.append(Run(f"{place:0{width}d}-{safe}", number, values))
    return runs
