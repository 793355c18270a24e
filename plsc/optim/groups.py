"""Which parameters are trained, decayed, and at which share of the learning rate."""

import fnmatch
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import paddle
from paddle import nn

from plsc.errors import ConfigError
from plsc.models.base import DecayExempt, LayerWise


@dataclass
class Group:
    """Parameters that are updated alike.

    Attributes:
        decay: what the optimizer's weight decay is multiplied by; 0 where they have none.
        lr_scale: what the learning rate is multiplied by.
    """

    decay: float
    lr_scale: float
    names: list[str] = field(default_factory=list)
    parameters: list[paddle.Tensor] = field(default_factory=list)


def groups_of(groups: list[Group], owned: Collection[str]) -> list[Group]:
    """The groups with the parameters of these names alone; groups that are left without any are left out."""
    kept = []
    for group in groups:
        pairs = [(n, p) for n, p in zip(group.names, group.parameters, strict=True) if n in owned]
        if pairs:
            kept.append(Group(group.decay, group.lr_scale, [n for n, _ in pairs], [p for _, p in pairs]))
    return kept


def paddle_groups(groups: list[Group], weight_decay: float, key: str = "weight_decay") -> list[Any]:
    """Parameter groups in the form that Paddle's optimizers take.

    Args:
        weight_decay: of a group whose `decay` is 1.
        key: the optimizer's name for it.
    """
    return [{"params": g.parameters, "learning_rate": g.lr_scale, key: weight_decay * g.decay} for g in groups]


def _rules(name: str, parameter: paddle.Tensor, tokens: set[str], norms: set[str]) -> set[str]:
    """Which of the rules bias, norm, token, position, 1d a parameter falls under.

    Args:
        tokens: names of the parameters that are tokens or positions. norms: names of the normalisation layers.
    """
    rules = set()
    owner, _, last = name.rpartition(".")
    if last == "bias":
        rules.add("bias")
    if owner in norms or "norm" in owner.rsplit(".", 1)[-1]:
        rules.add("norm")
    if name in tokens:
        rules.add("position" if name == "pos_embed" else "token")
    if len(parameter.shape) <= 1:
        rules.add("1d")
    return rules


def freeze(model: nn.Layer, patterns: Collection[str]) -> list[str]:
    """Stop training the parameters whose names match a pattern (`blocks.0.*`); returns their names.

    Raises ConfigError where a pattern matches nothing, or nothing is left to train.
    """
    frozen = [name for pattern in patterns for name in _matching(model, pattern, "freeze")]
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.stop_gradient = True
    if all(p.stop_gradient for p in model.parameters()):
        raise ConfigError("Optimizer.freeze: the patterns leave no parameter to train")
    return sorted(set(frozen))


def _matching(model: nn.Layer, pattern: str, key: str) -> list[str]:
    """Names of the parameters that a pattern of Optimizer.`key` fits. Raises ConfigError where there is none."""
    names = [name for name, _ in model.named_parameters()]
    matched = fnmatch.filter(names, pattern)
    if not matched:
        raise ConfigError(f"Optimizer.{key}: {pattern!r} matches no parameter, such as {names[0]} or {names[-1]}")
    return matched


def parameter_groups(
    model: nn.Layer,
    *,
    no_decay: Collection[str] = (),
    no_decay_names: Collection[str] = (),
    layer_decay: float | None = None,
    lr_scale: Mapping[str, float] | None = None,
    weight_decay_scale: Mapping[str, float] | None = None,
) -> list[Group]:
    """Split a model's trainable parameters.

    Args:
        no_decay: rules whose parameters get no weight decay, of bias, norm, token, position, 1d; tokens and positions
            are those of a DecayExempt model.
        no_decay_names: parts of names whose parameters get none.
        layer_decay: the learning rate of layer i of L is times layer_decay ** (L - i), the head's times 1
            (BEiT, Bao et al., 2022; layers as a LayerWise model numbers them).
        lr_scale: pattern of names, such as head.*, → what the learning rate of these parameters is multiplied by,
            besides layer_decay's factor. Where several patterns fit a name, the last of them holds.
        weight_decay_scale: the same of the weight decay, of parameters that have one (Zhai et al., 2022: the head's is
            100 times the body's).

    Raises:
        ConfigError: layer_decay is asked of a model that is not LayerWise, or a pattern matches nothing.
    """
    tokens = model.no_weight_decay() if isinstance(model, DecayExempt) else set()
    norms = {name for name, layer in model.named_sublayers() if "Norm" in type(layer).__name__}
    by_layer = _lr_scale(model, layer_decay)
    rates = _by_name(model, lr_scale, "lr_scale")
    decays = _by_name(model, weight_decay_scale, "weight_decay_scale")
    groups: dict[tuple[float, float], Group] = {}
    for name, parameter in model.named_parameters():
        if parameter.stop_gradient:
            continue
        exempt = _rules(name, parameter, tokens, norms) & set(no_decay) or any(p in name for p in no_decay_names)
        key = (0.0 if exempt else decays.get(name, 1.0), by_layer(name) * rates.get(name, 1.0))
        group = groups.setdefault(key, Group(*key))
        group.names.append(name)
        group.parameters.append(parameter)
    return list(groups.values())


def _by_name(model: nn.Layer, scale: Mapping[str, float] | None, key: str) -> dict[str, float]:
    """The factor of each parameter that a pattern of Optimizer.`key` fits."""
    return {name: factor for pattern, factor in (scale or {}).items() for name in _matching(model, pattern, key)}


def _lr_scale(model: nn.Layer, layer_decay: float | None) -> Callable[[str], float]:
    """A parameter's name → its share of the learning rate."""
    if layer_decay is None:
        return lambda name: 1.0
    if not isinstance(model, LayerWise):
        raise ConfigError(
            f"Optimizer.layer_decay needs a model that numbers its layers, but {type(model).__name__} has no "
            "layer_id(name) (plsc.models.base.LayerWise); leave layer_decay out"
        )
    deepest = max(model.layer_id(name) for name, _ in model.named_parameters())
    return lambda name: layer_decay ** (deepest - model.layer_id(name))
