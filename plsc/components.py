"""Which modules register what recipes can name."""

import importlib

_ROOMS = (
    "plsc.models",
    "plsc.data.datasets",
    "plsc.data.transforms",
    "plsc.data.mixing",
    "plsc.data.sampler",
    "plsc.losses",
    "plsc.metrics",
    "plsc.optim",
)


def register_all() -> None:
    """Import every module that registers a factory."""
    for room in _ROOMS:
        importlib.import_module(room)
