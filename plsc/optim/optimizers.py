"""Optimizers by name. A factory gets parameter groups and returns a Paddle optimizer, used for its kernels.

Paddle's own grad_clip and schedulers are never used: it clips each parameter group by itself.
"""

import paddle

from plsc.errors import ConfigError
from plsc.optim.extra_optimizers import Adafactor as _Adafactor
from plsc.optim.extra_optimizers import Lars as _Lars
from plsc.registry import OPTIMIZERS


def _require(condition: bool, text: str):
    if not condition:
        raise ConfigError(text)


def _check(weight_decay: float, betas=(), epsilon: float = 1.0):
    _require(weight_decay >= 0, f"weight_decay is {weight_decay}; it cannot be negative")
    _require(all(0.0 <= b < 1.0 for b in betas), f"betas are {betas}; each must be at least 0 and below 1")
    _require(epsilon > 0, f"epsilon is {epsilon}; it must be above 0")


def _paddle_groups(groups, weight_decay: float, key: str = "weight_decay") -> list[dict]:
    return [
        {"params": g.parameters, "learning_rate": g.lr_scale, key: weight_decay if g.decay else 0.0} for g in groups
    ]


@OPTIMIZERS.register()
def AdamW(
    betas: tuple[float, float] = (0.9, 0.999),
    epsilon: float = 1e-8,
    weight_decay: float = 0.0,
    *,
    groups,
    multi_precision: bool = False,
):
    """Adam with decoupled weight decay, p -= lr * weight_decay * p (Loshchilov and Hutter, 2019)."""
    _check(weight_decay, betas, epsilon)
    return paddle.optimizer.AdamW(
        learning_rate=0.0,
        beta1=betas[0],
        beta2=betas[1],
        epsilon=epsilon,
        parameters=_paddle_groups(groups, weight_decay),
        weight_decay=weight_decay,
        multi_precision=multi_precision,
    )


@OPTIMIZERS.register()
def Adam(
    betas: tuple[float, float] = (0.9, 0.999),
    epsilon: float = 1e-8,
    weight_decay: float = 0.0,
    *,
    groups,
    multi_precision: bool = False,
):
    """Adam; weight_decay is added to the gradient, L2 (Kingma and Ba, 2015)."""
    _check(weight_decay, betas, epsilon)
    return paddle.optimizer.Adam(
        learning_rate=0.0,
        beta1=betas[0],
        beta2=betas[1],
        epsilon=epsilon,
        parameters=_paddle_groups(groups, weight_decay),
        weight_decay=weight_decay,
        multi_precision=multi_precision,
    )


@OPTIMIZERS.register()
def Momentum(
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    use_nesterov: bool = False,
    *,
    groups,
    multi_precision: bool = False,
):
    """SGD with momentum; weight_decay is added to the gradient, L2, as in PLSC."""
    _check(weight_decay)
    _require(0.0 <= momentum < 1.0, f"momentum is {momentum}; it must be at least 0 and below 1")
    return paddle.optimizer.Momentum(
        learning_rate=0.0,
        momentum=momentum,
        parameters=_paddle_groups(groups, weight_decay),
        use_nesterov=use_nesterov,
        weight_decay=weight_decay,
        multi_precision=multi_precision,
    )


@OPTIMIZERS.register()
def SGD(weight_decay: float = 0.0, *, groups, multi_precision: bool = False):
    """Plain stochastic gradient descent; weight_decay is added to the gradient, L2."""
    _check(weight_decay)
    return paddle.optimizer.SGD(
        learning_rate=0.0,
        parameters=_paddle_groups(groups, weight_decay),
        weight_decay=weight_decay,
        multi_precision=multi_precision,
    )


@OPTIMIZERS.register()
def Lamb(
    betas: tuple[float, float] = (0.9, 0.999),
    epsilon: float = 1e-6,
    weight_decay: float = 0.01,
    *,
    groups,
    multi_precision: bool = False,
):
    """LAMB: Adam's update scaled by each parameter's norm, for large batches (You et al., 2020).

    Parameters without weight decay take Adam's update unscaled, as in Paddle's kernel.
    """
    _check(weight_decay, betas, epsilon)
    return paddle.optimizer.Lamb(
        learning_rate=0.0,
        lamb_weight_decay=weight_decay,
        beta1=betas[0],
        beta2=betas[1],
        epsilon=epsilon,
        parameters=_paddle_groups(groups, weight_decay, key="lamb_weight_decay"),
        multi_precision=multi_precision,
    )


@OPTIMIZERS.register()
def LARS(
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    trust_coefficient: float = 0.001,
    epsilon: float = 1e-8,
    *,
    groups,
    multi_precision: bool = False,
):
    """LARS: momentum with a rate a layer, trust * |w| / (|g| + wd * |w|) (You et al., 2017).

    Parameters without weight decay are updated by plain momentum, as the paper does for biases.
    """
    _check(weight_decay, epsilon=epsilon)
    _require(0.0 <= momentum < 1.0, f"momentum is {momentum}; it must be at least 0 and below 1")
    return _Lars(
        _paddle_groups(groups, weight_decay, key="lars_weight_decay"),
        momentum=momentum,
        trust_coefficient=trust_coefficient,
        epsilon=epsilon,
        multi_precision=multi_precision,
    )


@OPTIMIZERS.register()
def Adafactor(
    epsilon: float = 1e-30,
    eps_scale: float = 1e-3,
    clip_threshold: float = 1.0,
    decay_rate: float = -0.8,
    betas: tuple[float, float] | float | None = None,
    scale_parameter: bool = True,
    weight_decay: float = 0.0,
    *,
    groups,
    multi_precision: bool = False,
):
    """Adafactor: second moments as row and column means (Shazeer and Stern, 2018).

    betas, or its first number, is the decay of a first moment; None keeps none. With
    scale_parameter the schedule's rate is relative to each parameter's root mean square; weight
    decay is decoupled and uses that same rate, as in PLSC.
    """
    _check(weight_decay, epsilon=epsilon)
    _require(decay_rate < 0, f"Adafactor.decay_rate is {decay_rate}; it must be below 0")
    beta1 = betas[0] if isinstance(betas, tuple) else betas
    _require(beta1 is None or 0.0 <= beta1 < 1.0, f"betas are {betas}; the first must be at least 0 and below 1")
    _require(clip_threshold > 0, f"clip_threshold is {clip_threshold}; it must be above 0")
    return _Adafactor(
        _paddle_groups(groups, weight_decay, key="adafactor_weight_decay"),
        epsilon=epsilon,
        eps_scale=eps_scale,
        clip_threshold=clip_threshold,
        decay_rate=decay_rate,
        beta1=beta1,
        scale_parameter=scale_parameter,
        multi_precision=multi_precision,
    )
