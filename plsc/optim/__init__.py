"""Optimizers, learning-rate schedules, parameter groups and clipping."""

from plsc.optim import optimizers, schedules  # noqa: F401 - registration
from plsc.optim.base import OptimizerFactory, Schedule, WithWarmup
from plsc.optim.clipping import GradientClip
from plsc.optim.groups import Group, groups_of, paddle_groups, parameter_groups
from plsc.optim.update import Optimizer

__all__ = [
    "GradientClip",
    "Group",
    "Optimizer",
    "OptimizerFactory",
    "Schedule",
    "WithWarmup",
    "groups_of",
    "paddle_groups",
    "parameter_groups",
]
