"""Pictures of what a model sees and how a run went, as PNG or SVG. docs/visualization.md shows and explains them.

>>> from plsc.visualize import draw_attention
>>> draw_attention("output/flowers", ["rose.jpg", "tulip.jpg"], "sheet.png")

A model is given as a path of weights or as what plsc.load_model returns. Importing this imports no Paddle.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plsc.visualize.attention import draw_attention as draw_attention
    from plsc.visualize.confusion import draw_confusion as draw_confusion
    from plsc.visualize.contact_sheet import draw_contact_sheet as draw_contact_sheet
    from plsc.visualize.curves import draw_curves as draw_curves
    from plsc.visualize.filters import draw_filters as draw_filters
    from plsc.visualize.patches import draw_patches as draw_patches
    from plsc.visualize.position import draw_position as draw_position
    from plsc.visualize.schedule import draw_schedule as draw_schedule

_PICTURES = ("attention", "confusion", "contact_sheet", "curves", "filters", "patches", "position", "schedule")

__all__ = [f"draw_{picture}" for picture in _PICTURES]


def __getattr__(name: str) -> Any:
    """Import a function when it is first used."""
    if name not in __all__:
        raise AttributeError(f"module 'plsc.visualize' has no attribute {name!r}")
    from plsc import environment

    environment.import_paddle()
    return getattr(importlib.import_module(f"plsc.visualize.{name.removeprefix('draw_')}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
