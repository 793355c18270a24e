"""Which parameters are trained, decayed, and at which share of the learning rate."""

import fnmatch
from collections import defaultdict
from dataclasses import dataclass, field

from plsc.errors import ConfigError


@dataclass
class Group:
    """Parameters that are updated alike."""

    decay: bool
    lr_scale: float
    names: list[str] = field(default_factory=list)
    parameters: list = field(default_factory=list)


def paddle_groups(groups: list[Group], weight_decay: float, key: str = "weight_decay") -> list[dict]:
    """Parameter groups in the form that Paddle's optimizers take.

    Args:
        weight_decay: of the groups that are decayed.
        key: the optimizer's name for it.
    """
    return [
        {"params": g.parameters, "learning_rate": g.lr_scale, key: weight_decay if g.decay else 0.0} for g in groups
    ]


def _rule(name: str, parameter, tokens: set[str]) -> set[str]:
    """Which of the rules bias, norm, token, position, 1d a parameter falls under."""
    rules = set()
    owner, _, last = name.rpartition(".")
    if last == "bias":
        rules.add("bias")
    if "norm" in owner.rsplit(".", 1)[-1]:
        rules.add("norm")
    if name in tokens:
        rules.add("position" if name == "pos_embed" else "token")
    if len(parameter.shape) <= 1:
        rules.add("1d")
    return rules


def freeze(model, patterns) -> list[str]:
    """Stop training the parameters whose names match a pattern (`blocks.0.*`); returns their names.

    Raises ConfigError where a pattern matches nothing, or nothing is left to train.
    """
    frozen = []
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns:
        matched = fnmatch.filter(names, pattern)
        if not matched:
            raise ConfigError(f"Optimizer.freeze: {pattern!r} matches no parameter, such as {names[0]} or {names[-1]}")
        frozen += matched
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.stop_gradient = True
    if all(p.stop_gradient for p in model.parameters()):
        raise ConfigError("Optimizer.freeze: the patterns leave no parameter to train")
    return sorted(set(frozen))


def parameter_groups(model, *, no_decay=(), no_decay_names=(), layer_decay: float | None = None) -> list[Group]:
    """Split a model's trainable parameters.

    Args:
        no_decay: rules whose parameters get no weight decay, of bias, norm, token, position, 1d.
        no_decay_names: parts of names whose parameters get none.
        layer_decay: the learning rate of layer i of L is times layer_decay ** (L - i), the head's times 1
            (BEiT, Bao et al., 2022; layers as model.layer_id numbers them).
    """
    tokens = model.no_weight_decay()
    groups: dict[tuple, Group] = defaultdict(lambda: None)
    named = [(n, p) for n, p in model.named_parameters() if not p.stop_gradient]
    deepest = max(model.layer_id(name) for name, _ in model.named_parameters())
    for name, parameter in named:
        exempt = _rule(name, parameter, tokens) & set(no_decay) or any(part in name for part in no_decay_names)
        scale = 1.0 if layer_decay is None else layer_decay ** (deepest - model.layer_id(name))
        key = (not exempt, scale)
        if groups[key] is None:
            groups[key] = Group(*key)
        groups[key].names.append(name)
        groups[key].parameters.append(parameter)
    return list(groups.values())
