"""plsc.train: a run from its configuration, with its curves drawn at the end. Importing it imports no Paddle."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from plsc.engine import run
from plsc.engine.callbacks import Callback
from plsc.engine.run import TrainResult

if TYPE_CHECKING:
    from plsc.config import Config

log = logging.getLogger("plsc")


class Curves(Callback):
    """Draws the run's metrics.jsonl into curves.png of the run directory, unless a signal ended it: that is urgent."""

    def end(self, result: TrainResult) -> None:
        if result.signal is not None:
            return
        from plsc.visualize.curves import draw_curves

        picture = draw_curves([result.run_directory], Path(result.run_directory) / "curves.png")
        if picture is not None:
            log.info("curves: %s", picture)


def train(config: "Config", callbacks: Sequence[Callback] = (), *, verify: bool = True) -> TrainResult:
    """Train, fine-tune or continue the run that a configuration describes.

    Works in a notebook, in any thread, and several times in one process; under paddle.distributed.launch every
    process calls it alike. SIGTERM and Ctrl-C end the run after the update in progress, with a checkpoint.

    >>> config = plsc.load_config("digits", overrides={"Global.output_dir": "output/mine", "Global.epochs": 2})
    >>> result = plsc.train(config)
    >>> result.best["value"], result.run_directory

    Args:
        config: see plsc.load_config.
        callbacks: called at certain moments of the run, see plsc.Callback.
        verify: compare the files of a plsc checkpoint that the run begins with with their checksums.

    Returns:
        The run directory, whether the run finished, and its last and best evaluation.

    Raises:
        PlscError: what the user can correct. One process raises it; of several, the one that fails prints it and writes
            it to errors/rank-N.txt in the run directory, and all end with exit code 2.
    """
    return run.train(config, [*callbacks, Curves()], verify=verify)
