"""What a schedule and an optimizer offer."""

from typing import Protocol, runtime_checkable

import paddle

from plsc.optim.groups import Group


@runtime_checkable
class Schedule(Protocol):
    """A learning-rate schedule: a pure function of the update's number, so that no checkpoint needs its state.

    Its factory is registered in plsc.registry.SCHEDULERS; parameters named total_steps and steps_per_epoch, the
    length of the run, are filled in by the engine:

        @SCHEDULERS.register()
        def Halving(learning_rate: PositiveFloat, *, total_steps: int):
            return lambda step: learning_rate * 0.5 ** (10 * step / total_steps)
    """

    def __call__(self, step: int) -> float:
        """The learning rate of update `step`, 0 for the first."""
        ...


@runtime_checkable
class WithWarmup(Schedule, Protocol):
    """A schedule that says how long it warms up; a run that ends before is warned of."""

    warmup: int  # updates


class OptimizerFactory(Protocol):
    """What is registered in plsc.registry.OPTIMIZERS.

    The optimizer's learning rate is set before each update; it neither clips gradients nor schedules rates:

        @OPTIMIZERS.register()
        def RMSProp(rho: BelowOne = 0.95, weight_decay: NonNegativeFloat = 0.0, *, groups):
            return paddle.optimizer.RMSProp(0.0, rho, parameters=paddle_groups(groups, weight_decay))
    """

    def __call__(self, *, groups: list[Group], multi_precision: bool = False) -> paddle.optimizer.Optimizer:
        """Make an optimizer.

        Args:
            groups: the parameters, see plsc.optim.paddle_groups; filled in by the engine.
            multi_precision: whether half-precision parameters are updated through float32 copies; filled in by the
                engine where the factory has it.
        """
        ...
