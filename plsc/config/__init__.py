"""A recipe or a dict → validated Config: parse, inherit, override, locate, coerce, check."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from plsc.config.check import check
from plsc.config.config import Config
from plsc.config.frozen import thawed
from plsc.config.schema import Component, DataSection
from plsc.config.source import Overrides, Source, load_source

__all__ = ["Component", "Config", "DataSection", "Source", "check", "load", "load_source", "thawed"]


def load(
    source: str | Path | Mapping,
    overrides: Overrides = (),
    imports: Iterable[str] = (),
    *,
    for_training: bool = True,
    run_imports: bool = True,
) -> Config:
    """Read and check a configuration.

    Args:
        source: a path, the bare name of a shipped recipe, or a dict of sections as a recipe has them.
        overrides: texts "A.B.0.C=value", applied in order, or a dict {"Global.epochs": 3}.
        imports: modules (my_package.my_module) and files (./my_dataset.py, in the working directory) that
            register components, besides Global.imports.
        for_training: False for what only evaluates, predicts or exports: sections and components that training alone
            needs may be missing or unknown; a note says so, and they are absent from the Config.
        run_imports: False for a configuration that was found, in a checkpoint or a run directory, and not named by the
            user: its Global.imports are kept, but run no code. Those of `imports` and `overrides` do.

    Raises:
        ConfigError: with every problem, each with its place, key and remedy.

    Example:
        config = load("digits", {"Global.epochs": 3}, imports=["./my_dataset.py"])
    """
    return check(load_source(source, overrides), imports, for_training=for_training, run_imports=run_imports)
