"""How many updates a run has, before it is run."""

from dataclasses import dataclass
from typing import Any

from plsc.build.data import dataset, local_batch_size, sampler
from plsc.config import Config
from plsc.data.datasets.base import Dataset
from plsc.errors import ConfigError, DataError


@dataclass(frozen=True)
class Length:
    """Updates of a run.

    Attributes:
        steps: until its end. schedule_steps: of the schedule, which max_train_step may cut short.
    """

    steps: int
    schedule_steps: int
    steps_per_epoch: int


class _Counted:
    """As many samples as a data set has that is missing."""

    def __init__(self, count: int):
        self._count = count

    def __len__(self) -> int:
        return self._count


def length_of(
    config: Config,
    *,
    steps: int | None = None,
    samples: int | None = None,
    data: Dataset | None = None,
    processes: int = 1,
    hint: str = "",
) -> Length:
    """How long a run is.

    Args:
        steps: of the whole schedule, where the training data are missing.
        samples: that the training data have, where they are missing. data: these, where they are open already.
        processes: that the run is to have; with the recipe's batch size a process they give the global batch.
        hint: ends the message where the data are missing.

    Raises:
        DataError: the training data cannot be read, so that the length of an epoch is unknown.
    """
    g = config.Global
    if steps is not None:
        return Length(steps, steps, max(1, round(steps / (g.epochs or 1))))
    if "Train" not in config.DataLoader:
        raise ConfigError(
            f"DataLoader.Train is missing: without data the length of an epoch is unknown\n{hint}".rstrip()
        )
    try:
        order_of: Any = data or (dataset(config, "Train") if samples is None else _Counted(samples))
    except (ConfigError, DataError) as error:
        raise type(error)(f"{error}\n{hint}".rstrip()) from error
    batch = local_batch_size(config, processes)
    per_epoch = sampler(config, order_of, batch, 0, processes).steps_per_epoch
    whole = g.epochs * per_epoch if g.epochs else g.max_train_step or 0
    return Length(min(whole, g.max_train_step or whole), whole, per_epoch)
