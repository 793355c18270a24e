"""Optimizers by name: a factory gets parameter groups and returns a Paddle optimizer.

Paddle's own grad_clip and schedulers are never used: it clips each parameter group by itself.
"""

from typing import Annotated, Literal

import paddle
from pydantic import Field

from plsc.bounds import BelowOne, NonNegativeFloat, PositiveFloat
from plsc.optim.extra_optimizers import Adafactor as _Adafactor
from plsc.optim.extra_optimizers import Lars as _Lars
from plsc.optim.extra_optimizers import Lion as _Lion
from plsc.optim.extra_optimizers import Muon as _Muon
from plsc.optim.groups import Group, paddle_groups
from plsc.optim.multi_tensor import MultiTensorAdamW
from plsc.registry import OPTIMIZERS

Betas = tuple[BelowOne, BelowOne]


@OPTIMIZERS.register()
def AdamW(
    betas: Betas = (0.9, 0.999),
    epsilon: PositiveFloat = 1e-8,
    weight_decay: NonNegativeFloat = 0.0,
    *,
    groups: list[Group],
    multi_precision: bool = False,
) -> paddle.optimizer.Optimizer:
    """Adam with decoupled weight decay, p -= lr * weight_decay * p (Loshchilov and Hutter, 2019)."""
    return MultiTensorAdamW(
        learning_rate=0.0,
        beta1=betas[0],
        beta2=betas[1],
        epsilon=epsilon,
        parameters=paddle_groups(groups, weight_decay),
        weight_decay=weight_decay,
        multi_precision=multi_precision,
    )


@OPTIMIZERS.register()
def Adam(
    betas: Betas = (0.9, 0.999),
    epsilon: PositiveFloat = 1e-8,
    weight_decay: NonNegativeFloat = 0.0,
    *,
    groups: list[Group],
    multi_precision: bool = False,
) -> paddle.optimizer.Optimizer:
    """Adam; weight_decay is added to the gradient, L2 (Kingma and Ba, 2015)."""
    return paddle.optimizer.Adam(
        learning_rate=0.0,
        beta1=betas[0],
        beta2=betas[1],
        epsilon=epsilon,
        parameters=paddle_groups(groups, weight_decay),
        weight_decay=weight_decay,
        multi_precision=multi_precision,
    )


@OPTIMIZERS.register()
def Momentum(
    momentum: BelowOne = 0.9,
    weight_decay: NonNegativeFloat = 0.0,
    use_nesterov: bool = False,
    *,
    groups: list[Group],
    multi_precision: bool = False,
) -> paddle.optimizer.Optimizer:
    """SGD with momentum; weight_decay is added to the gradient, L2, as in PLSC."""
    return paddle.optimizer.Momentum(
        learning_rate=0.0,
        momentum=momentum,
        parameters=paddle_groups(groups, weight_decay),
        use_nesterov=use_nesterov,
        weight_decay=weight_decay,
        multi_precision=multi_precision,
    )


@OPTIMIZERS.register()
def SGD(
    weight_decay: NonNegativeFloat = 0.0, *, groups: list[Group], multi_precision: bool = False
) -> paddle.optimizer.Optimizer:
    """Plain stochastic gradient descent; weight_decay is added to the gradient, L2."""
    return paddle.optimizer.SGD(
        learning_rate=0.0,
        parameters=paddle_groups(groups, weight_decay),
        weight_decay=weight_decay,
        multi_precision=multi_precision,
    )


@OPTIMIZERS.register()
def Lamb(
    betas: Betas = (0.9, 0.999),
    epsilon: PositiveFloat = 1e-6,
    weight_decay: NonNegativeFloat = 0.01,
    *,
    groups: list[Group],
    multi_precision: bool = False,
) -> paddle.optimizer.Optimizer:
    """LAMB: Adam's update scaled by each parameter's norm, for large batches (You et al., 2020).

    Parameters without weight decay take Adam's update unscaled, as Paddle does.
    """
    return paddle.optimizer.Lamb(
        learning_rate=0.0,
        lamb_weight_decay=weight_decay,
        beta1=betas[0],
        beta2=betas[1],
        epsilon=epsilon,
        parameters=paddle_groups(groups, weight_decay, key="lamb_weight_decay"),
        multi_precision=multi_precision,
    )


@OPTIMIZERS.register()
def LARS(
    momentum: BelowOne = 0.9,
    weight_decay: NonNegativeFloat = 0.0,
    trust_coefficient: PositiveFloat = 0.001,
    epsilon: PositiveFloat = 1e-8,
    *,
    groups: list[Group],
    multi_precision: bool = False,
) -> paddle.optimizer.Optimizer:
    """LARS: momentum with a rate a layer, trust * |w| / (|g| + wd * |w|) (You et al., 2017).

    Parameters that no_weight_decay exempts are updated by plain momentum, as the paper does for biases; weight_decay
    may be 0 all the same, as in MAE's linear probe.
    """
    made = paddle_groups(groups, weight_decay, key="lars_weight_decay")
    return _Lars(
        [{**inner, "lars_adapts": group.decay > 0} for inner, group in zip(made, groups, strict=True)],
        momentum=momentum,
        trust_coefficient=trust_coefficient,
        epsilon=epsilon,
        multi_precision=multi_precision,
    )


@OPTIMIZERS.register()
def Adafactor(
    epsilon: PositiveFloat = 1e-30,
    eps_scale: PositiveFloat = 1e-3,
    clip_threshold: PositiveFloat | None = 1.0,
    decay_rate: Annotated[float, Field(lt=0)] = -0.8,
    beta2_cap: Annotated[float, Field(gt=0, le=1)] = 1.0,
    betas: Betas | BelowOne | None = None,
    scale_parameter: bool = True,
    weight_decay: NonNegativeFloat = 0.0,
    *,
    groups: list[Group],
    multi_precision: bool = False,
) -> paddle.optimizer.Optimizer:
    """Adafactor: second moments as row and column means (Shazeer and Stern, 2018).

    betas, or its first number, is the decay of a first moment; None keeps none. With
    scale_parameter the schedule's rate is relative to each parameter's root mean square; weight
    decay is decoupled and uses that same rate, as in PLSC. big_vision's variant for large ViTs (Zhai et al., 2022) is
    betas 0.9, beta2_cap 0.999, clip_threshold None and scale_parameter False.

    Args:
        clip_threshold: of the root mean square of a parameter's update; None does not clip.
        decay_rate, beta2_cap: the decay of second moments at update t is min(1 - t ** decay_rate, beta2_cap).
    """
    beta1 = betas[0] if isinstance(betas, tuple) else betas
    return _Adafactor(
        paddle_groups(groups, weight_decay, key="adafactor_weight_decay"),
        epsilon=epsilon,
        eps_scale=eps_scale,
        clip_threshold=clip_threshold,
        decay_rate=decay_rate,
        beta2_cap=beta2_cap,
        beta1=beta1,
        scale_parameter=scale_parameter,
        multi_precision=multi_precision,
    )


@OPTIMIZERS.register()
def Lion(
    betas: Betas = (0.9, 0.99),
    weight_decay: NonNegativeFloat = 0.0,
    *,
    groups: list[Group],
    multi_precision: bool = False,
) -> paddle.optimizer.Optimizer:
    """Lion: the sign of an interpolated momentum, with decoupled weight decay (Chen et al., 2023).

    Its authors take a third to a tenth of AdamW's rate and as many times its weight decay.
    """
    return _Lion(
        paddle_groups(groups, weight_decay, key="lion_weight_decay"), betas=betas, multi_precision=multi_precision
    )


@OPTIMIZERS.register()
def Muon(
    momentum: BelowOne = 0.95,
    weight_decay: NonNegativeFloat = 0.0,
    adjust_lr: Literal["match_adamw", "original"] = "match_adamw",
    betas: Betas = (0.9, 0.95),
    epsilon: PositiveFloat = 1e-8,
    adamw_names: tuple[str, ...] = ("head",),
    *,
    groups: list[Group],
    multi_precision: bool = False,
) -> paddle.optimizer.Optimizer:
    """Muon: momentum of weight matrices, orthogonalised by Newton-Schulz (Jordan et al., 2024); AdamW for the rest.

    The rest is what is not a matrix (biases, norms, tokens, positions, convolutions) and what adamw_names names by
    a part. The query, key and value parts of a fused qkv matrix are orthogonalised one by one. Weight decay is
    decoupled. Sources: kellerjordan.github.io/posts/muon and torch.optim.Muon.

    Args:
        adjust_lr: match_adamw scales a matrix's update by 0.2 sqrt(max(in, out)), so that AdamW's rate and weight
            decay serve for all (Liu et al., 2025, "Muon is scalable"); original by sqrt(max(1, out / in)).
        betas, epsilon: AdamW's.
    """
    matrices, split = {}, []
    for group in groups:
        members: dict[int, list] = {}
        for name, parameter in zip(group.names, group.parameters, strict=True):
            count = _matrices_in(name, parameter, adamw_names)
            members.setdefault(count, []).append(parameter)
            if count:
                matrices[parameter.name] = count
        for count, parameters in members.items():
            split.append(
                {
                    "params": parameters,
                    "learning_rate": group.lr_scale,
                    "muon_weight_decay": weight_decay * group.decay,
                    "muon_matrices": count,
                }
            )
    return _Muon(
        split,
        matrices=matrices,
        momentum=momentum,
        match_adamw=adjust_lr == "match_adamw",
        betas=betas,
        epsilon=epsilon,
        multi_precision=multi_precision,
    )


def _matrices_in(name: str, parameter: paddle.Tensor, adamw_names: tuple[str, ...]) -> int:
    """How many matrices lie side by side in a parameter; 0 where it is none that Muon updates."""
    if len(parameter.shape) != 2 or any(part in name for part in adamw_names):
        return 0
    owner = name.rpartition(".")[0].rpartition(".")[2]
    return {"qkv": 3, "kv": 2}.get(owner, 1)
