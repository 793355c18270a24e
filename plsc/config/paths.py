"""Paths of files to read that a recipe names: which file is meant, and where it was looked for."""

import re
from pathlib import Path

from plsc import remote
from plsc.config.source import KeyPath, Source
from plsc.files import special_kind
from plsc.registry import InputPath


def resolved(value, mark: InputPath, folder: Path | None):
    """The value of an InputPath with relative paths made absolute.

    A relative path is looked for in the working directory, as PLSC does, then in `folder`, that of the recipe which
    names it. Where it is in neither, the working directory's is meant. Addresses (s3://…) and null stay as they are.

    Args:
        value: a path, or a list of them.
    """
    if isinstance(value, (list, tuple)):
        return type(value)(resolved(item, mark, folder) for item in value)
    if not isinstance(value, str) or not value or _is_address(value):
        return value
    path = Path(value).expanduser()
    candidates = [Path.cwd() / path, *([folder / path] if folder else [])]
    return str(next((c for c in candidates if _is_there(c, mark)), candidates[0]))


def missing(source: Source, at: KeyPath, value, mark: InputPath) -> str | None:
    """What to say where a file that a key names is not there, or is not a file; None where it is one.

    Args:
        value: as `resolved` returns it.
    """
    for item in value if isinstance(value, (list, tuple)) else [value]:
        kind = special_kind(item) if isinstance(item, str) else None
        if kind:
            return f"{item} is {kind}, not a file"
        if (
            isinstance(item, str)
            and item
            and not _is_address(item)
            and not mark.made
            and not _is_there(Path(item), mark)
        ):
            origin, written = source.origin(at), source.value(at)
            text = f"{item} is missing"
            if origin.file and isinstance(written, str) and not Path(written).expanduser().is_absolute():
                text += f"; a relative path is looked for in {Path.cwd()} and in {origin.file.parent}"
            return text
    return None


def _is_address(value: str) -> bool:
    return "://" in value or remote.is_remote(value)


def _is_there(path: Path, mark: InputPath) -> bool:
    """Whether a path exists, matches a file, or begins the names of files, as best_model those of PLSC."""
    try:
        if path.exists():
            return True
        if mark.pattern:
            anchor = Path(path.anchor)
            pattern = re.sub(r"\{\d+\.\.\d+\}", "*", str(path.relative_to(anchor)))  # ranges as webdataset writes them
            return next(anchor.glob(pattern), None) is not None
        return path.parent.is_dir() and any(p.name.startswith(f"{path.name}.") for p in path.parent.iterdir())
    except OSError:  # a name that no file can have
        return False
