"""What runs have recorded: figures of metrics.jsonl, their configuration and environment."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from plsc import files, places
from plsc.errors import DataError


def read_metrics(folder: str | Path) -> list[dict[str, Any]]:
    """The records of a run directory's metrics.jsonl; a last line cut short is left out."""
    records = []
    path = Path(folder) / "metrics.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and {"kind", "step"} <= record.keys():
            records.append(record)
    return records


def check_runs(folders: Iterable[str | Path]) -> None:
    """Raise DataError naming the first folder that is not a run directory, or holds no records."""
    for folder in map(Path, folders):
        if not folder.exists():
            raise DataError(f"{folder}: no such run directory (looked in {Path.cwd()})")
        if not (folder / "metrics.jsonl").is_file():
            raise DataError(
                f"{folder}: there is no metrics.jsonl in it; name a run's output_dir, as `plsc train` wrote it"
            )
        if not read_metrics(folder):
            raise DataError(f"{folder}: its metrics.jsonl holds no records yet")


def run_folders(runs: Iterable[str | Path]) -> list[Path]:
    """Run directories; a folder that is none, but holds some, stands for those."""
    folders: list[Path] = []
    for folder in map(Path, runs):
        inside = []
        if folder.is_dir() and not (folder / "metrics.jsonl").exists():
            inside = sorted(path.parent for path in folder.glob("*/metrics.jsonl"))
        folders += inside or [folder]
    return folders


def run_names(folders: Iterable[str | Path]) -> dict[str, Path]:
    """Name → folder: the folders' last parts, as many as distinguish them. A folder given twice counts once."""
    paths = list(dict.fromkeys(Path(folder).resolve() for folder in folders))
    named: dict[str, Path] = {}
    for parts in range(1, max((len(path.parts) for path in paths), default=0) + 1):
        named = {"/".join(path.parts[-parts:]): path for path in paths}
        if len(named) == len(paths):
            break
    return named


def best_metric(folder: str | Path) -> str | None:
    """The name of the figure by which a run's best checkpoint was chosen; None before the first evaluation."""
    pointer = Path(folder) / places.CHECKPOINTS / "best"
    if not pointer.is_file():
        return None
    lines = pointer.read_text(encoding="utf-8").splitlines()
    record = files.parse_json(lines[1], dict, where=str(pointer), error=DataError) if len(lines) > 1 else {}
    return record.get("metric")


def last_evaluation(records: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The records of the last step that was evaluated, of raw and of averaged weights."""
    evaluated = [record for record in records if record["kind"] == "eval"]
    return [record for record in evaluated if record["step"] == evaluated[-1]["step"]]
