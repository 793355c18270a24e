"""Architectures: no training, no files, no configuration.

Names, specs, sizes and costs of all models are known without Paddle; it is imported when a model is made.
"""

import importlib
from typing import TYPE_CHECKING, Any

from plsc.errors import ConfigError
from plsc.models.spec import ViTSpec, flops, known_flops, parameter_count
from plsc.models.zoo import PRESETS
from plsc.registry import MODELS, matching

if TYPE_CHECKING:
    from plsc.models.vision_transformer import VisionTransformer

__all__ = ["ViTSpec", "VisionTransformer", "flops", "known_flops", "list_models", "parameter_count", "spec_of"]


def __getattr__(name: str) -> Any:
    """VisionTransformer, with which Paddle is imported."""
    if name != "VisionTransformer":
        raise AttributeError(f"module 'plsc.models' has no attribute {name!r}")
    return importlib.import_module("plsc.models.vision_transformer").VisionTransformer


def list_models(pattern: str = "*") -> list[str]:
    """Names of the registered models, sorted. Imports no Paddle.

    Args:
        pattern: as of files, such as "ViT_small*", in any case. A model is listed by its own name where another name of
            its fits, too.

    Example:
        >>> plsc.list_models("R26*384")
        ['R26_ViT_large_patch32_384', 'R26_ViT_small_patch32_384']
    """
    return [name for name in MODELS if matching(pattern, (name, *MODELS.aliases_of(name)))]


def spec_of(name: str, **fields: Any) -> ViTSpec:
    """The spec of one of plsc's models, with other values for some fields. Imports no Paddle.

    Raises:
        ConfigError: there is no model of this name, it is not plsc's own, or a value is out of bounds.

    Example:
        >>> parameter_count(spec_of("ViT_base_patch16_224", class_num=10)) / 1e6
        86.396938
    """
    entry = MODELS.get(name)
    if entry.name not in PRESETS:
        raise ConfigError(f"{name}: its spec is known only once it is built, since it is not one of plsc's own models")
    return ViTSpec(**{**PRESETS[entry.name][1], **fields})
