"""Where recipes are: a path as given, else the bare name of one that plsc ships."""

from pathlib import Path

from plsc.errors import ConfigError
from plsc.files import special_kind
from plsc.registry import nearest

SHIPPED = Path(__file__).resolve().parent.parent / "configs"


def shipped_recipes() -> dict[str, Path]:
    """Bare name → file of every recipe in the package.

    Files and folders whose name begins with _ are parts of recipes, for their _base_.
    """
    files = (path for path in SHIPPED.rglob("*.yaml") if not _is_part(path))
    return {path.stem: path for path in sorted(files)}


def _is_part(path: Path) -> bool:
    return any(name.startswith("_") for name in path.relative_to(SHIPPED).parts)


HEADER = ("Command", "Data", "Hardware", "Time", "Figure", "Source", "Note")


def header(path: Path) -> dict[str, str]:
    """What the comment at the top of a recipe says: "" → what it reproduces, then its entries of HEADER.

    An entry is a line `# Data      CIFAR-10`, and the lines after it that are indented further.
    """
    entries, key = {"": ""}, ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        text = line[1:]
        first = text.split(maxsplit=1)[0] if text.strip() else ""
        if text.startswith(f" {first}") and first in HEADER:
            key, text = first, text.strip().removeprefix(first)
        entries[key] = f"{entries.get(key, '')} {text.strip()}".strip()
    return entries


def locate(name: str, beside: Path | None = None) -> Path:
    """The file of a recipe. Raises ConfigError naming the nearest one if there is none."""
    if not isinstance(name, str) or not name:
        raise ConfigError(f"a recipe is named by its path or its bare name, not by {name!r}")
    given = Path(name).expanduser()
    for candidate in (beside / given,) if beside else (given,):
        if candidate.is_file():
            return candidate.resolve()
        kind = special_kind(candidate)
        if kind:
            raise ConfigError(f"{name} is {kind}, not a file")
    recipes = shipped_recipes()
    if name in recipes or (given.stem in recipes and given.parent == Path(".")):
        return recipes[name if name in recipes else given.stem]
    close = nearest(given.stem, recipes)
    hint = f"did you mean {close}?" if close else "`plsc list recipes` shows those that are shipped"
    raise ConfigError(f"{name}: neither a file nor a shipped recipe; {hint}")
