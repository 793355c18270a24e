"""Which modules register what recipes can name: plsc's own, installed packages' and a recipe's.

Paddle is imported by most of them, and so only when one of these functions is called.
"""

import contextlib
import functools
import hashlib
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterable, Iterator
from importlib.machinery import SourceFileLoader
from importlib.metadata import entry_points
from pathlib import Path

from plsc.errors import ConfigError

GROUP = "plsc.components"
_MODELS = ("plsc.models", "plsc.models.vit_family")
_ROOMS = (
    *_MODELS,
    "plsc.data.datasets",
    "plsc.data.transforms",
    "plsc.data.mixing",
    "plsc.data.sampler",
    "plsc.losses",
    "plsc.metrics",
    "plsc.optim",
    "plsc.tasks",
)


def register_all() -> None:
    """Import every module of plsc that registers a factory, and those of installed packages. Imports Paddle.

    A package offers a module, or a function that registers, under the entry point group "plsc.components".

    Raises:
        ConfigError: an installed package's entry point cannot be loaded.
    """
    _register(_ROOMS)


def register_models() -> None:
    """As `register_all`, of plsc's own only the models and the layouts of their weights. These import no Paddle."""
    _register(_MODELS)


def _register(rooms: Iterable[str]) -> None:
    for room in rooms:
        importlib.import_module(room)
    _register_installed()


@functools.cache
def _register_installed() -> None:
    """Load the entry points of installed packages; once, as a function that is cached."""
    for point in entry_points(group=GROUP):
        package = f"the installed package {point.dist.name}" if point.dist else "an installed package"
        with _naming_the_place(
            f"{package} offers components to plsc, but its entry point {point.name} = {point.value} fails"
        ):
            offered = point.load()
            if point.attr:
                offered()


def import_part(name: str, folder: Path | None = None) -> str:
    """Import a module, or a file, once a process, so that what it registers can be named in recipes.

    Args:
        name: a module's dotted name (my_package.my_module) or the path of a .py file.
        folder: that a relative path is relative to; the working directory where it is None.

    Returns:
        The name, a file's with its absolute path.

    Raises:
        ConfigError: there is no such module or file, or it raises an error, which is named with file and line.
    """
    if not name.endswith(".py") and "/" not in name:
        with _naming_the_place(f"{name} cannot be imported"):
            importlib.import_module(name)
        return name
    path = ((folder or Path.cwd()) / Path(name).expanduser()).resolve()
    if not path.is_file():
        raise ConfigError(f"{name}: there is no such file (looked for {path})")
    if not _is_imported(path):
        with _naming_the_place(f"{name} cannot be imported"):
            _run(path, f"plsc_import_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}")
    return str(path)


def import_parts(names: Iterable[str], folder: Path | None = None) -> list[str]:
    """`import_part` of each, in order."""
    return [import_part(name, folder) for name in names]


def _is_imported(path: Path) -> bool:
    """Whether a file is a module of this process, under whatever name: a program's own file, too."""
    files = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    return any(file and os.path.basename(file) == path.name and Path(file).resolve() == path for file in files)


def _run(path: Path, module_name: str) -> None:
    """Run a file as the module of a name; where it fails, the module does not stay."""
    loader = SourceFileLoader(module_name, str(path))
    spec = importlib.util.spec_from_loader(module_name, loader)
    assert spec is not None, "a loader of a file has a spec"
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        loader.exec_module(module)
    except BaseException:
        del sys.modules[module_name]
        raise


@contextlib.contextmanager
def _naming_the_place(text: str) -> Iterator[None]:
    """Turns an error of somebody's module into a ConfigError that names the file and line."""
    try:
        yield
    except Exception as error:
        raise ConfigError(f"{text}: {_described(error)}") from error


def _described(error: Exception) -> str:
    """`my_dataset.py:12: NameError: name 'x' is not defined`, at the innermost line that is not plsc's or Python's."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}: {error.msg}"
    here = str(Path(__file__).parent)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith((here, "<frozen"))]
    frames = [f for f in frames if f"{os.sep}importlib{os.sep}" not in f.filename]
    place = f"{frames[-1].filename}:{frames[-1].lineno}: " if frames else ""
    hint = ""
    if isinstance(error, ModuleNotFoundError) and not frames:
        hint = "; install it, add its folder to PYTHONPATH, or give the path of a file, such as ./my_module.py"
    return f"{place}{type(error).__name__}: {error}{hint}"
