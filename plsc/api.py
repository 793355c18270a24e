"""Configurations for programs: read, with the process prepared for the device before Paddle is imported."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from plsc import environment
from plsc.config import Config, check, load_source
from plsc.config.source import Overrides


def load_config(
    config: str | Path | Mapping[str, Any],
    overrides: Overrides = (),
    imports: Iterable[str] = (),
    *,
    for_training: bool = True,
    run_imports: bool = True,
) -> Config:
    """Read and check a configuration; it cannot be changed afterwards, `config.replace` makes a changed copy.

    Where Paddle has not been imported yet, its threads are set first, as Global.cpu_threads says.

    Args:
        config: a path, the bare name of a shipped recipe, or a dict of sections as a recipe has them.
        overrides: a dict {"Global.epochs": 3}, or texts "Global.epochs=3" as after -o, applied in order.
        imports: modules (my_package.my_module) and files (./my_dataset.py) that register components, besides the
            recipe's own Global.imports.
        for_training: False for what only evaluates, predicts or exports: sections and components that training alone
            needs may be missing or unknown.
        run_imports: False leaves the recipe's Global.imports alone, as for a configuration that comes with somebody
            else's checkpoint.

    Returns:
        The Config: sections are attributes (config.Global.epochs); `to_dict()` is a runnable recipe.

    Raises:
        ConfigError: every problem at once, each with its file and line or override, the key and a remedy.
        DeviceError: PaddlePaddle is not installed.

    Example:
        >>> config = plsc.load_config("digits", overrides={"Global.epochs": 3, "Model.depth": 2})
        >>> config.Global.epochs
        3
    """
    source = load_source(config, overrides)
    section = source.tree.get("Global")
    section = section if isinstance(section, dict) else {}
    threads = section.get("cpu_threads")
    environment.import_paddle(cpu_threads=threads if type(threads) is int and threads > 0 else None)
    return check(source, imports, for_training=for_training, run_imports=run_imports)
