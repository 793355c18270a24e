"""One run of a search, as a process of its own: python -m plsc.sweeps.child FOLDER FRACTION.

FOLDER/sweep-run.json has the recipe, overrides and imports. The run ends at the first evaluation after FRACTION of its
updates, with a checkpoint, and goes on from there when it is started again with a larger one.
"""

import json
import math
import os
import signal
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plsc import files, places
from plsc.api import load_config
from plsc.engine.callbacks import Callback, RunInfo
from plsc.errors import ConfigError, PlscError
from plsc.sweeps.journal import SETTINGS
from plsc.training import train


class Until(Callback):
    """Stops a run after the first evaluation at or after a share of its updates, as a signal would."""

    def __init__(self, fraction: float):
        self._fraction = fraction
        self.reached = False

    def start(self, run: RunInfo) -> None:
        self._total, self._step = run.total_steps, math.ceil(self._fraction * run.total_steps)

    def after_evaluation(self, step: int, weights: str, record: Mapping[str, float]) -> None:
        if self._step <= step < self._total and not self.reached:
            self.reached = True
            os.kill(os.getpid(), signal.SIGTERM)  # the run stops after its next update, and saves


def command(settings: Mapping[str, Any], folder: Path) -> list[str]:
    """The words that repeat a run without its search: for environment.json, in place of this process's own.

    Args:
        settings: what SETTINGS holds. folder: its run directory, whose config.yaml stands for a recipe given as a dict.
    """
    recipe = settings["recipe"]
    words = ["plsc", "train", "-c", recipe if isinstance(recipe, str) else str(folder / places.RECIPE)]
    for module in settings["imports"]:
        words += ["--import", module]
    for key, value in settings["overrides"].items():
        if key != "Global.resume":  # the search's way to start again
            words += ["-o", f"{key}={json.dumps(value, ensure_ascii=False)}"]
    return words


def main(arguments: list[str]) -> int:
    """Run it; returns the exit code, 0 also where the share of updates was reached."""
    folder, until = Path(arguments[0]), Until(float(arguments[1]))
    try:
        settings = files.read_json(folder / SETTINGS, dict, error=ConfigError)
        sys.argv = command(settings, folder)
        config = load_config(settings["recipe"], settings["overrides"], settings["imports"])
        result = train(config, callbacks=[until])
    except PlscError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Exception:
        traceback.print_exc()
        return 1
    return 0 if until.reached else result.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
