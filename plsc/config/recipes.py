"""Where recipes are: a path as given, else the bare name of one that plsc ships."""

from pathlib import Path

from plsc.errors import ConfigError
from plsc.files import special_kind
from plsc.registry import nearest

SHIPPED = Path(__file__).resolve().parent.parent / "configs"


def shipped_recipes() -> dict[str, Path]:
    """Bare name → file of every recipe in the package."""
    return {path.stem: path for path in sorted(SHIPPED.rglob("*.yaml"))}


def describe(path: Path) -> str:
    """The first comment line of a recipe."""
    with open(path, encoding="utf-8") as file:
        first = file.readline().strip()
    return first.lstrip("# ") if first.startswith("#") else ""


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
