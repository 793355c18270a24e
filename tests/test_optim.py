"""Clipping, parameter groups, freezing, the optimizers' arithmetic and their state by name."""

import math
from types import SimpleNamespace

import numpy as np
import paddle
import pytest

from plsc import compat
from plsc.errors import CheckpointError, ConfigError
from plsc.models import VisionTransformer, ViTSpec
from plsc.optim import GradientClip, Group, Optimizer, multi_tensor, parameter_groups
from plsc.optim.groups import freeze
from plsc.registry import OPTIMIZERS

# -- clipping -----------------------------------------------------------------------------


def with_gradients(arrays: dict, dtype: str = "float32") -> list:
    """(name, object with .grad) of each array, as GradientClip takes parameters."""
    return [(name, SimpleNamespace(grad=paddle.to_tensor(a).astype(dtype))) for name, a in arrays.items()]


def gradients_of(named) -> dict[str, np.ndarray]:
    return {name: p.grad.astype("float32").numpy() for name, p in named}


def some_gradients(norm: float) -> dict[str, np.ndarray]:
    """Three tensors of different shape and size whose global norm is `norm`."""
    rng = np.random.default_rng(0)
    drawn = {"a.weight": rng.standard_normal((3, 4)), "a.bias": 5 * rng.standard_normal(4), "b": rng.standard_normal(1)}
    total = math.sqrt(sum((a**2).sum() for a in drawn.values()))
    return {name: (a * norm / total).astype("float32") for name, a in drawn.items()}


@pytest.mark.parametrize(
    ("options", "norm", "factor"),
    [
        (dict(clip_norm=1.0), 4.0, 0.25),
        (dict(clip_norm=1.0), 0.5, 1.0),
        (dict(clip_norm=3.0), 4.0, 0.75),
        (dict(clip_norm=None), 4.0, 1.0),
        (dict(clip_norm=1.0, always_clip=True), 0.5, 2.0),
        (dict(clip_norm=1.0, always_clip=True), 4.0, 0.25),
        # the factor is at most clip_norm_max
        (dict(clip_norm=1.0, always_clip=True, clip_norm_max=1.5), 0.5, 1.5),
        (dict(clip_norm=1.0, always_clip=True, clip_norm_max=3.0), 0.5, 2.0),
        (dict(clip_norm=1.0, clip_norm_max=0.1), 4.0, 0.1),
        (dict(clip_norm=1.0, clip_norm_max=3.0), 0.5, 1.0),
        # below clip_norm and without always_clip nothing is scaled, as in PLSC
        (dict(clip_norm=1.0, clip_norm_max=0.1), 0.5, 1.0),
    ],
    ids=str,
)
def test_clipping_against_numpy(options, norm, factor):
    """Every gradient is multiplied by one factor of the norm over all; the norm before is returned."""
    arrays = some_gradients(norm)
    named = with_gradients(arrays)
    returned = GradientClip(**options)(named)
    assert list(returned.shape) == []
    assert returned.dtype == paddle.float32
    assert returned.item() == pytest.approx(norm, rel=1e-5)
    for name, gradient in gradients_of(named).items():
        np.testing.assert_allclose(gradient, arrays[name] * factor, rtol=1e-5)


def test_no_clip_list():
    """What it names by a part is neither measured nor scaled."""
    named = with_gradients({"a.weight": np.full([4], 3.0, "float32"), "head.weight": np.full([2], 100.0, "float32")})
    norm = GradientClip(clip_norm=3.0, no_clip_list=("head",))(named)
    assert norm.item() == pytest.approx(6.0)  # sqrt(4 x 9)
    gradients = gradients_of(named)
    np.testing.assert_allclose(gradients["a.weight"], 1.5, rtol=1e-5)
    assert (gradients["head.weight"] == 100.0).all()


@pytest.mark.parametrize("always_clip", [False, True])
def test_zero_gradients_stay_zero(always_clip):
    named = with_gradients({"a": np.zeros([3], "float32"), "b": np.zeros([2, 2], "float32")})
    assert GradientClip(clip_norm=1.0, always_clip=always_clip)(named).item() == 0.0
    assert all((g == 0).all() for g in gradients_of(named).values())


def test_missing_gradients_are_left_out():
    named = [("a", SimpleNamespace(grad=None)), *with_gradients({"b": np.array([3.0, 4.0], "float32")})]
    assert GradientClip(clip_norm=1.0)(named).item() == pytest.approx(5.0)
    assert GradientClip(clip_norm=1.0)([("a", SimpleNamespace(grad=None))]).item() == 0.0


def test_half_precision_is_measured_in_float32():
    """16 values of 300: the norm is 1200, though 300² overflows float16."""
    named = with_gradients({"a": np.full([4, 4], 300.0, "float32")}, "float16")
    norm = GradientClip()(named)
    assert norm.dtype == paddle.float32
    assert norm.item() == pytest.approx(1200.0)


def test_half_precision_is_clipped_in_its_own_type():
    named = with_gradients({"a": np.full([4, 4], 256.0, "float32")}, "bfloat16")
    assert GradientClip(clip_norm=2.0)(named).item() == pytest.approx(1024.0)
    assert named[0][1].grad.dtype == paddle.bfloat16
    np.testing.assert_allclose(gradients_of(named)["a"], 0.5, rtol=1e-2)


# -- a small layer with known gradients ---------------------------------------------------

SHAPES = {"kept.matrix": [4, 3], "kept.vector": [5], "free.matrix": [3, 2], "free.vector": [4]}
SCALE = {"kept": 1.0, "free": 0.25}  # of the learning rate; weights of "free" do not decay


class Part(paddle.nn.Layer):
    def __init__(self, shapes):
        super().__init__()
        for name, shape in shapes.items():
            setattr(self, name, self.create_parameter(shape))


class Toy(paddle.nn.Layer):
    """Parameters by the names of SHAPES, drawn by NumPy."""

    def __init__(self, shapes=None, seed: int = 1):
        super().__init__()
        shapes = shapes or SHAPES
        for owner in ("kept", "free"):
            inner = {n.split(".")[1]: s for n, s in shapes.items() if n.startswith(owner)}
            setattr(self, owner, Part(inner))
        rng = np.random.default_rng(seed)
        for _, parameter in self.named_parameters():
            parameter.set_value(rng.standard_normal(parameter.shape).astype("float32"))

    def groups(self) -> list[Group]:
        made = []
        for owner, scale in SCALE.items():
            named = {n: p for n, p in self.named_parameters() if n.startswith(owner)}
            made.append(Group(owner == "kept", scale, list(named), list(named.values())))
        return made

    def weights(self) -> dict[str, np.ndarray]:
        return {name: p.numpy() for name, p in self.named_parameters()}


def optimizer_of(model: Toy, name: str, clip=None, **arguments) -> Optimizer:
    inner = OPTIMIZERS.get(name).build(arguments, groups=model.groups(), multi_precision=False)
    return Optimizer(inner, model, clip or GradientClip())


def drawn_gradients(step: int, shapes=None) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(100 + step)
    return {n: (0.5 * rng.standard_normal(s)).astype("float32") for n, s in (shapes or SHAPES).items()}


def update(model, optimizer, gradients: dict, lr: float):
    """One update with these very gradients: the derivative of sum(w g) by w is g."""
    loss = sum((p * paddle.to_tensor(gradients[n])).sum() for n, p in model.named_parameters() if n in gradients)
    loss.backward()
    optimizer.set_lr(lr)
    norm = optimizer.clip_gradients()
    optimizer.paddle_optimizer.step()
    optimizer.clear_gradients()
    return norm


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_clipping_is_global_over_parameter_groups(name):
    """Two groups with gradients of norm 10 each and clip_norm 1: together they are clipped to 1.0.

    Paddle, handed a grad_clip, clips each group to 1.0, sqrt(2) together.
    """
    model = Toy()
    optimizer = optimizer_of(model, name, GradientClip(clip_norm=1.0))
    gradients = drawn_gradients(0)
    for owner in SCALE:
        norm = math.sqrt(sum((g**2).sum() for n, g in gradients.items() if n.startswith(owner)))
        gradients = {n: g * (10 / norm) if n.startswith(owner) else g for n, g in gradients.items()}
    sum((p * paddle.to_tensor(gradients[n])).sum() for n, p in model.named_parameters()).backward()
    assert optimizer.clip_gradients().item() == pytest.approx(math.sqrt(200), rel=1e-5)
    clipped = math.sqrt(sum((p.grad.numpy() ** 2).sum() for p in model.parameters()))
    assert clipped == pytest.approx(1.0, rel=1e-4)
    if name == "SGD":  # its update is the learning rate times the gradient, in "free" times 0.25
        before = model.weights()
        optimizer.set_lr(1.0)
        optimizer.paddle_optimizer.step()
        moved = {n: (before[n] - w) / SCALE[n.split(".")[0]] for n, w in model.weights().items()}
        assert math.sqrt(sum((m**2).sum() for m in moved.values())) == pytest.approx(1.0, rel=1e-4)


def test_cleared_gradients_do_not_add_up():
    """After clear_gradients the next backward gives the gradient alone."""
    model = Toy()
    optimizer = optimizer_of(model, "SGD")
    update(model, optimizer, drawn_gradients(0), 0.1)
    gradients = drawn_gradients(1)
    sum((p * paddle.to_tensor(gradients[n])).sum() for n, p in model.named_parameters()).backward()
    for name, parameter in model.named_parameters():
        np.testing.assert_allclose(parameter.grad.numpy(), gradients[name], rtol=1e-6)


# -- groups and freezing ------------------------------------------------------------------


def vit(**fields) -> VisionTransformer:
    small = dict(img_size=8, patch_size=4, class_num=5, embed_dim=16, depth=2, num_heads=2, mlp_ratio=2.0)
    return VisionTransformer(ViTSpec(**{**small, **fields}))


def without_decay(model, **options) -> set[str]:
    return {name for group in parameter_groups(model, **options) if not group.decay for name in group.names}


BIASES = {
    "patch_embed.proj.bias",
    "norm.bias",
    "head0.bias",
    "head.bias",
    *(
        f"blocks.{i}.{n}.bias"
        for i in (0, 1)
        for n in ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    ),
}
NORMS = {
    "norm.weight",
    "norm.bias",
    *(f"blocks.{i}.norm{k}.{n}" for i in (0, 1) for k in (1, 2) for n in ("weight", "bias")),
}
GAMMAS = {f"blocks.{i}.ls{k}.gamma" for i in (0, 1) for k in (1, 2)}


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ([], set()),
        (["bias"], BIASES),
        (["norm"], NORMS),
        (["token"], {"cls_token", "reg_token"}),
        (["position"], {"pos_embed"}),
        (["1d"], BIASES | NORMS | GAMMAS),
        (["bias", "norm"], BIASES | NORMS),
        (["token", "position"], {"cls_token", "reg_token", "pos_embed"}),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, list) else "",
)
def test_rules_of_no_weight_decay(rules, expected):
    model = vit(representation_size=7, reg_tokens=2, layer_scale=0.1)
    assert without_decay(model, no_decay=rules) == expected


def test_the_query_of_attention_pooling_is_a_token():
    model = vit(pool="map", class_token=False)
    assert without_decay(model, no_decay=["token"]) == {"attn_pool.latent"}
    assert {"attn_pool.norm.weight", "attn_pool.norm.bias"} <= without_decay(model, no_decay=["norm"])


def test_fc_norm_is_a_norm():
    assert {"fc_norm.weight", "fc_norm.bias"} <= without_decay(vit(pool="avg", fc_norm=True), no_decay=["norm"])


def test_names_without_weight_decay():
    """PLSC's no_weight_decay_name: any part of a name; rules add to it."""
    model = vit()
    assert without_decay(model, no_decay_names=["attn.qkv"]) == {
        f"blocks.{i}.attn.qkv.{n}" for i in (0, 1) for n in ("weight", "bias")
    }
    assert without_decay(model, no_decay_names=["head.weight"], no_decay=["position"]) == {"head.weight", "pos_embed"}


def test_groups_hold_every_trainable_parameter_once():
    model = vit(pos_embed="sincos2d")
    groups = parameter_groups(model, no_decay=["bias", "norm"], layer_decay=0.5)
    listed = [name for group in groups for name in group.names]
    trained = [name for name, p in model.named_parameters() if not p.stop_gradient]
    assert "pos_embed" not in listed
    assert sorted(listed) == sorted(trained)
    parameters = dict(model.named_parameters())
    for group in groups:
        assert all(p is parameters[n] for n, p in zip(group.names, group.parameters, strict=True))
    assert len({(group.decay, group.lr_scale) for group in groups}) == len(groups)


def test_layer_decay():
    """Layers 0 embeddings, 1 and 2 the blocks, 3 the rest: 0.5³, 0.5², 0.5, 1."""
    scales = {n: g.lr_scale for g in parameter_groups(vit(), layer_decay=0.5) for n in g.names}
    assert scales["pos_embed"] == scales["cls_token"] == scales["patch_embed.proj.weight"] == 0.125
    assert scales["blocks.0.attn.qkv.weight"] == scales["blocks.0.norm1.bias"] == 0.25
    assert scales["blocks.1.mlp.fc2.weight"] == 0.5
    assert scales["norm.weight"] == scales["head.weight"] == scales["head.bias"] == 1.0
    assert {g.lr_scale for g in parameter_groups(vit())} == {1.0}


def test_layer_decay_reaches_the_update():
    """With equal gradients and SGD the embeddings move 0.125 times as far as the head."""
    model = vit()
    inner = OPTIMIZERS.get("SGD").build({}, groups=parameter_groups(model, layer_decay=0.5), multi_precision=False)
    optimizer = Optimizer(inner, model, GradientClip())
    before = {name: p.numpy() for name, p in model.named_parameters()}
    sum(p.sum() for p in model.parameters()).backward()
    optimizer.set_lr(0.1)
    optimizer.paddle_optimizer.step()
    moved = {name: before[name] - p.numpy() for name, p in model.named_parameters()}
    np.testing.assert_allclose(moved["head.weight"], 0.1, rtol=1e-4)
    np.testing.assert_allclose(moved["blocks.1.mlp.fc1.weight"], 0.05, rtol=1e-4)
    np.testing.assert_allclose(moved["pos_embed"], 0.0125, rtol=1e-4)


def test_a_rate_of_its_own_for_the_head():
    """lr_scale multiplies layer_decay's factor; of several patterns the last that fits holds."""
    patterns = {"blocks.*": 2.0, "blocks.1.mlp.*": 3.0, "head.*": 10.0}
    scales = {n: g.lr_scale for g in parameter_groups(vit(), layer_decay=0.5, lr_scale=patterns) for n in g.names}
    assert scales["head.weight"] == scales["head.bias"] == 10.0
    assert scales["blocks.0.attn.qkv.weight"] == 0.5 and scales["blocks.1.attn.qkv.weight"] == 1.0
    assert scales["blocks.1.mlp.fc1.weight"] == 1.5
    assert scales["norm.weight"] == 1.0 and scales["pos_embed"] == 0.125
    with pytest.raises(ConfigError, match=r"Optimizer\.lr_scale: 'hed\.\*' matches no parameter"):
        parameter_groups(vit(), lr_scale={"hed.*": 2.0})


@pytest.mark.parametrize("name", ["AdamW", "Lion", "Muon"])
def test_a_weight_decay_of_its_own_for_the_head(name):
    """Without gradients' part, an update of rate 0.1 takes 0.1 * decay off; what is exempt stays exempt."""
    model = vit()
    scale = {"blocks.*": 2.0, "head.*": 100.0}
    groups = parameter_groups(model, no_decay=["bias"], weight_decay_scale=scale)
    optimizer = Optimizer(OPTIMIZERS.get(name).build(dict(weight_decay=0.01), groups=groups), model, GradientClip())
    for _, parameter in optimizer.named:
        parameter.set_value(paddle.ones_like(parameter))
        parameter.grad = paddle.zeros_like(parameter)
    optimizer.set_lr(0.1)
    optimizer.paddle_optimizer.step()
    left = {n: p.numpy().ravel()[0] for n, p in model.named_parameters()}
    expected = {"head.weight": 0.1, "head.bias": 0.0, "blocks.0.attn.qkv.weight": 0.002, "norm.weight": 0.001}
    for weight, taken in expected.items():
        assert 1.0 - left[weight] == pytest.approx(taken, abs=1e-6), weight
    with pytest.raises(ConfigError, match=r"Optimizer\.weight_decay_scale: 'hed\.\*' matches no parameter"):
        parameter_groups(model, weight_decay_scale={"hed.*": 2.0})


def test_freeze():
    """Frozen parameters are named, get no gradient and are in no group; the layer numbers stay."""
    model = vit()
    frozen = freeze(model, ["patch_embed.*", "blocks.0.norm?.bias", "pos_embed"])
    assert frozen == [
        "blocks.0.norm1.bias",
        "blocks.0.norm2.bias",
        "patch_embed.proj.bias",
        "patch_embed.proj.weight",
        "pos_embed",
    ]
    assert sorted(n for n, p in model.named_parameters() if p.stop_gradient) == frozen
    listed = {name for group in parameter_groups(model) for name in group.names}
    assert listed == {n for n, _ in model.named_parameters()} - set(frozen)


def test_a_linear_probe_keeps_the_head_alone():
    model = vit()
    freeze(model, ["patch_embed.*", "cls_token", "pos_embed", "blocks.*", "norm.*"])
    (group,) = parameter_groups(model, layer_decay=0.5)
    assert sorted(group.names) == ["head.bias", "head.weight"]
    assert group.lr_scale == 1.0
    optimizer = Optimizer(OPTIMIZERS.get("AdamW").build({}, groups=[group]), model, GradientClip())
    assert sorted(name for name, _ in optimizer.named) == ["head.bias", "head.weight"]


def test_freeze_refuses_what_matches_nothing():
    model = vit()
    with pytest.raises(ConfigError, match=r"block\.0\.\*"):
        freeze(model, ["head.*", "block.0.*"])
    assert not any(p.stop_gradient for p in model.parameters())


def test_freeze_refuses_to_leave_nothing():
    with pytest.raises(ConfigError, match="no parameter to train"):
        freeze(vit(), ["*"])


def test_freeze_of_nothing():
    model = vit()
    assert freeze(model, []) == []
    assert not any(p.stop_gradient for p in model.parameters())


# -- the optimizers' arithmetic, in NumPy from the papers ----------------------------------


def numpy_adamw(w, g, s, t, lr, decay, betas=(0.8, 0.95), epsilon=0.01):
    """Loshchilov and Hutter, algorithm 2 with Adam's bias correction; the decay is not in the moments."""
    s["m"] = betas[0] * s.get("m", 0) + (1 - betas[0]) * g
    s["v"] = betas[1] * s.get("v", 0) + (1 - betas[1]) * g**2
    mean, square = s["m"] / (1 - betas[0] ** t), s["v"] / (1 - betas[1] ** t)
    return w - lr * decay * w - lr * mean / (np.sqrt(square) + epsilon)


def numpy_adam(w, g, s, t, lr, decay):
    """Kingma and Ba, with L2 regularisation."""
    return numpy_adamw(w, g + decay * w, s, t, lr, 0.0)


def numpy_momentum(w, g, s, t, lr, decay, nesterov=False):
    g = g + decay * w
    s["v"] = 0.7 * s.get("v", 0) + g
    return w - lr * (g + 0.7 * s["v"] if nesterov else s["v"])


def numpy_sgd(w, g, s, t, lr, decay):
    return w - lr * (g + decay * w)


def numpy_lamb(w, g, s, t, lr, decay, betas=(0.8, 0.95), epsilon=0.01):
    """You et al. 2020, algorithm 2. Without decay the update is Adam's, as the authors' code leaves such weights."""
    s["m"] = betas[0] * s.get("m", 0) + (1 - betas[0]) * g
    s["v"] = betas[1] * s.get("v", 0) + (1 - betas[1]) * g**2
    mean, square = s["m"] / (1 - betas[0] ** t), s["v"] / (1 - betas[1] ** t)
    r = mean / (np.sqrt(square) + epsilon) + decay * w
    return w - lr * (np.linalg.norm(w) / np.linalg.norm(r) if decay else 1.0) * r


def numpy_lars(w, g, s, t, lr, decay):
    """You et al. 2017, algorithm 1; weights that are exempt from decay take plain momentum."""
    local = 1.0
    if s["kept"]:
        local = 0.02 * np.linalg.norm(w) / (np.linalg.norm(g) + decay * np.linalg.norm(w))
    s["v"] = 0.7 * s.get("v", 0) + lr * local * (g + decay * w)
    return w - s["v"]


def numpy_adafactor(w, g, s, t, lr, decay, scale=True, beta1=None, threshold=1.0, cap=1.0):
    """Shazeer and Stern 2018, algorithms 4 and 5, with the given rate as rho; decay by the same rate, as PLSC."""

    def rms(x):
        return np.sqrt((x**2).mean())

    beta2 = min(1 - t**-0.8, cap)
    square = g**2 + 1e-30
    if g.ndim == 2:
        s["r"] = beta2 * s.get("r", 0) + (1 - beta2) * square.sum(axis=1)
        s["c"] = beta2 * s.get("c", 0) + (1 - beta2) * square.sum(axis=0)
        estimate = np.outer(s["r"], s["c"]) / s["r"].sum()
    else:
        s["v"] = estimate = beta2 * s.get("v", 0) + (1 - beta2) * square
    u = g / np.sqrt(estimate)
    u = u / max(1.0, rms(u) / threshold)
    rate = max(1e-3, rms(w)) * lr if scale else lr
    u = rate * u
    if beta1 is not None:
        s["m"] = u = beta1 * s.get("m", 0) + (1 - beta1) * u
    return w - rate * decay * w - u


def numpy_lion(w, g, s, t, lr, decay, betas=(0.8, 0.95)):
    """Chen et al. 2023, algorithm 2."""
    m = s.get("m", 0)
    s["m"] = betas[1] * m + (1 - betas[1]) * g
    return w - lr * (np.sign(betas[0] * m + (1 - betas[0]) * g) + decay * w)


def newton_schulz(g):
    """Five steps of the quintic on a matrix of norm 1, by its singular values: U f(...f(S)...) V'."""
    u, s, v = np.linalg.svd(g / np.linalg.norm(g), full_matrices=False)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return u @ np.diag(s) @ v


def numpy_muon(w, g, s, t, lr, decay, match=True, parts=1):
    """Jordan et al. 2024 for matrices [in, out], with Nesterov momentum; AdamW for vectors."""
    if g.ndim < 2:
        return numpy_adamw(w, g, s, t, lr, decay)
    s["m"] = 0.7 * s.get("m", 0) + g
    scale = 0.2 * np.sqrt(max(g.shape[0], g.shape[1] / parts)) if match else np.sqrt(max(1, g.shape[1] / g.shape[0]))
    steps = [scale * newton_schulz(part) for part in np.split(g + 0.7 * s["m"], parts, axis=1)]
    return w - lr * (np.concatenate(steps, axis=1) + decay * w)


ADAM = dict(betas=(0.8, 0.95), epsilon=0.01)
CASES = {
    "AdamW": (numpy_adamw, {}, ADAM),
    "Adam": (numpy_adam, {}, ADAM),
    "Momentum": (numpy_momentum, {}, dict(momentum=0.7)),
    "Momentum/nesterov": (numpy_momentum, dict(nesterov=True), dict(momentum=0.7, use_nesterov=True)),
    "SGD": (numpy_sgd, {}, {}),
    "Lamb": (numpy_lamb, {}, ADAM),
    "LARS": (numpy_lars, {}, dict(momentum=0.7, trust_coefficient=0.02)),
    "Adafactor": (numpy_adafactor, {}, {}),
    "Adafactor/beta1": (numpy_adafactor, dict(beta1=0.6), dict(betas=0.6)),
    "Adafactor/unscaled": (
        numpy_adafactor,
        dict(scale=False, threshold=0.5),
        dict(scale_parameter=False, clip_threshold=0.5),
    ),
    "Adafactor/big_vision": (
        numpy_adafactor,
        dict(beta1=0.9, scale=False, threshold=np.inf, cap=0.3),
        dict(betas=0.9, scale_parameter=False, clip_threshold=None, beta2_cap=0.3),
    ),
    "Lion": (numpy_lion, {}, dict(betas=(0.8, 0.95))),
    "Muon": (numpy_muon, {}, dict(momentum=0.7, **ADAM)),
    "Muon/original": (numpy_muon, dict(match=False), dict(momentum=0.7, adjust_lr="original", **ADAM)),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_two_updates_against_numpy(case, weight_decay):
    """Weight decay on one group only, a learning rate of a quarter in the other, another rate in each update."""
    definition, options, arguments = CASES[case]
    model = Toy()
    optimizer = optimizer_of(model, case.split("/")[0], weight_decay=weight_decay, **arguments)
    expected = {name: w.astype("float64") for name, w in model.weights().items()}
    state = {name: {"kept": name.startswith("kept")} for name in expected}
    for t, lr in ((1, 0.1), (2, 0.03)):
        gradients = drawn_gradients(t)
        update(model, optimizer, gradients, lr)
        for name, w in expected.items():
            owner = name.split(".")[0]
            decay = weight_decay if owner == "kept" else 0.0
            g = gradients[name].astype("float64")
            expected[name] = definition(w, g, state[name], t, lr * SCALE[owner], decay, **options)
        for name, w in model.weights().items():
            np.testing.assert_allclose(w, expected[name], rtol=2e-5, atol=2e-6, err_msg=f"{name}, update {t}")


@pytest.mark.parametrize("name", ["AdamW", "Adam", "Momentum", "SGD", "Lamb", "LARS", "Adafactor", "Lion", "Muon"])
def test_a_learning_rate_of_0_moves_nothing(name):
    """The first step of a warm-up from 0."""
    model = Toy()
    before = model.weights()
    update(model, optimizer_of(model, name, weight_decay=0.1), drawn_gradients(1), 0.0)
    for key, w in model.weights().items():
        np.testing.assert_allclose(w, before[key], rtol=1e-6, err_msg=key)


def test_adamw_in_one_call_a_group_is_paddles_bit_for_bit(monkeypatch):
    """Groups of other rates and decay, a gradient that is missing at first, and a state that is loaded on the way."""
    arguments, calls = dict(weight_decay=0.1, betas=(0.8, 0.95)), []
    fused = paddle._C_ops.fused_adam_
    monkeypatch.setattr(paddle._C_ops, "fused_adam_", lambda *a: calls.append(len(a[0])) or fused(*a))
    ours, theirs = Toy(), Toy()
    optimizer = optimizer_of(ours, "AdamW", **arguments)
    plain = optimizer_of(theirs, "AdamW", **arguments)
    plain.paddle_optimizer.step = lambda: paddle.optimizer.AdamW.step(plain.paddle_optimizer)
    for t in range(1, 5):
        if t == 3:
            state, optimizer = optimizer.state_dict(), optimizer_of(ours, "AdamW", **arguments)
            optimizer.load_state_dict(state)
        gradients = drawn_gradients(t)
        if t == 1:
            del gradients["kept.vector"]
        update(ours, optimizer, gradients, 0.01 * t)
        update(theirs, plain, gradients, 0.01 * t)
        for key, expected in {**theirs.weights(), **plain.state_dict()}.items():
            assert np.array_equal({**ours.weights(), **optimizer.state_dict()}[key], expected), (t, key)
    assert calls == ([] if compat.IS_PADDLE_2 else [1, 2, 2, 2, 2, 2, 2, 2])  # parameters of kept and free


@pytest.mark.skipif(compat.IS_PADDLE_2, reason="has another kernel, which is not taken")
def test_a_kernel_that_fails_with_a_loaded_state_is_not_taken(monkeypatch):
    """One that leaves weights alone where the powers of beta were assigned."""
    computes_right = multi_tensor._computes_right.__wrapped__
    assert computes_right(paddle.get_device())
    loaded, assign, fused = set(), paddle.assign, paddle._C_ops.fused_adam_

    def watched(value, output=None):
        loaded.update([] if output is None else [output.data_ptr()])
        return assign(value, output)

    def failing(*arguments):
        if not any(power.data_ptr() in loaded for power in arguments[6]):
            fused(*arguments)

    monkeypatch.setattr(paddle, "assign", watched)
    monkeypatch.setattr(paddle._C_ops, "fused_adam_", failing)
    assert not computes_right(paddle.get_device())


def test_muon_sorts_the_parameters_of_a_vit():
    """Matrices of the blocks keep one momentum, a fused qkv is three of them; the head and all others have AdamW's."""
    model = vit()
    named = dict(model.named_parameters())
    inner = OPTIMIZERS.get("Muon").build(
        dict(momentum=0.7, weight_decay=0.1), groups=parameter_groups(model, no_decay=["bias"]), multi_precision=False
    )
    optimizer = Optimizer(inner, model, GradientClip())
    rng = np.random.default_rng(0)
    qkv = "blocks.0.attn.qkv.weight"
    before = named[qkv].numpy().astype("float64")
    gradients = {n: rng.standard_normal(p.shape).astype("float32") for n, p in named.items()}
    update(model, optimizer, gradients, 0.1)
    expected = numpy_muon(before, gradients[qkv].astype("float64"), {}, 1, 0.1, 0.1, parts=3)
    np.testing.assert_allclose(named[qkv].numpy(), expected, rtol=2e-4, atol=2e-5)
    kinds = {n: {key.split("|")[1] for key in optimizer.state_dict() if key.split("|")[0] == n} for n in named}
    matrices = {n for n in named if kinds[n] == {"momentum"}}
    linear = {f"blocks.{i}.{n}.weight" for i in (0, 1) for n in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")}
    assert matrices == linear
    assert all(kinds[n] == {"update_count", "first_moment", "second_moment"} for n in named.keys() - linear)


def test_lars_survives_zero_weights_and_gradients():
    """A head drawn as zeros moves by the plain rate; nothing becomes NaN."""
    model = Toy()
    model.kept.matrix.set_value(np.zeros([4, 3], "float32"))
    optimizer = optimizer_of(model, "LARS", weight_decay=0.1, momentum=0.0)
    gradients = drawn_gradients(1)
    gradients["kept.vector"] = np.zeros([5], "float32")
    before = model.weights()
    update(model, optimizer, gradients, 0.1)
    after = model.weights()
    assert all(np.isfinite(w).all() for w in after.values())
    np.testing.assert_allclose(after["kept.matrix"], -0.1 * gradients["kept.matrix"], rtol=1e-5)
    assert np.abs(after["kept.vector"] - before["kept.vector"]).max() < 0.05


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("AdamW", dict(weight_decay=-0.1), "weight_decay"),
        ("AdamW", dict(betas=(0.9, 1.0)), "betas"),
        ("Adam", dict(epsilon=0.0), "epsilon"),
        ("Momentum", dict(momentum=1.0), "momentum"),
        ("SGD", dict(weight_decay=-1.0), "weight_decay"),
        ("Lamb", dict(betas=(-0.1, 0.9)), "betas"),
        ("LARS", dict(weight_decay=-1.0), "weight_decay"),
        ("LARS", dict(momentum=1.0), "momentum"),
        ("Adafactor", dict(decay_rate=0.8), "decay_rate"),
        ("Adafactor", dict(betas=1.0), "betas"),
        ("Adafactor", dict(clip_threshold=0.0), "clip_threshold"),
        ("Adafactor", dict(beta2_cap=1.5), "beta2_cap"),
        ("Lion", dict(betas=(0.9, 1.0)), "betas"),
        ("Muon", dict(momentum=1.0), "momentum"),
        ("Muon", dict(adjust_lr="spectral"), "adjust_lr"),
    ],
)
def test_wrong_arguments_are_refused_by_name(name, arguments, message):
    with pytest.raises(ConfigError, match=message):
        optimizer_of(Toy(), name, **arguments)


def half_update(model, optimizer, gradients: dict, lr: float):
    """One update of bfloat16 weights; the product is of float32, for Paddle adds no bfloat16 on CPU."""
    sum((p.astype("float32") * paddle.to_tensor(gradients[n])).sum() for n, p in model.named_parameters()).backward()
    optimizer.set_lr(lr)
    optimizer.paddle_optimizer.step()
    optimizer.clear_gradients()


def coarse_gradients(step: int) -> dict[str, np.ndarray]:
    """Gradients that bfloat16 holds exactly."""
    return {n: np.round(4 * g) / 4 for n, g in drawn_gradients(step).items()}


def half_toy(name: str, seed: int = 1):
    """A Toy in bfloat16 and its optimizer with float32 masters."""
    model = Toy(seed=seed)
    model.to(dtype="bfloat16")
    inner = OPTIMIZERS.get(name).build(dict(weight_decay=0.1), groups=model.groups(), multi_precision=True)
    return model, Optimizer(inner, model, GradientClip())


@pytest.mark.parametrize("name", ["LARS", "Adafactor", "Lion", "Muon"])
def test_masters_in_float32(name):
    """Our own kernels with bfloat16 weights: the master moves as float32 weights do, the weight is its rounding."""
    plain = Toy()
    for parameter in plain.parameters():  # values that bfloat16 can hold
        parameter.set_value(parameter.astype("bfloat16").astype("float32"))
    whole = optimizer_of(plain, name, weight_decay=0.1)
    half, halved = half_toy(name)
    for t in (1, 2):
        update(plain, whole, coarse_gradients(t), 0.01)
        half_update(half, halved, coarse_gradients(t), 0.01)
    weights = halved.weights()
    for key, expected in plain.weights().items():
        assert weights[key].dtype == paddle.float32
        np.testing.assert_allclose(weights[key].numpy(), expected, rtol=1e-6, atol=1e-7)
    for key, parameter in half.named_parameters():
        assert parameter.dtype == paddle.bfloat16
        rounded = weights[key].astype("bfloat16").astype("float32")
        assert np.array_equal(parameter.astype("float32").numpy(), rounded.numpy())


@pytest.mark.parametrize("name", ["LARS", "Adafactor", "Lion", "Muon"])
def test_state_round_trip_with_masters(name):
    """State stands under the parameters' names, not the masters'; with the masters given back, all is bit-equal."""
    first, one = half_toy(name)
    for t in (1, 2):
        half_update(first, one, coarse_gradients(t), 0.01)
    state = one.state_dict()
    assert {key.split("|")[0] for key in state} == set(SHAPES)
    second, two = half_toy(name, seed=9)
    two.load_state_dict(state)
    masters = two.weights()
    parameters = dict(second.named_parameters())
    for key, master in one.weights().items():
        assert masters[key] is not parameters[key]
        masters[key].set_value(master.numpy())
        parameters[key].set_value(master.astype("bfloat16"))
    for t in (3, 4):
        half_update(first, one, coarse_gradients(t), 0.01)
        half_update(second, two, coarse_gradients(t), 0.01)
    masters = two.weights()
    assert all(np.array_equal(masters[key].numpy(), w.numpy()) for key, w in one.weights().items())


# -- state by name ------------------------------------------------------------------------

ALL = {
    "AdamW": dict(weight_decay=0.1),
    "Adam": dict(weight_decay=0.1),
    "Momentum": dict(weight_decay=0.1),
    "SGD": dict(weight_decay=0.1),
    "Lamb": dict(weight_decay=0.1),
    "LARS": dict(weight_decay=0.1),
    "Adafactor": dict(weight_decay=0.1, betas=0.9),
    "Lion": dict(weight_decay=0.1),
    "Muon": dict(weight_decay=0.1),
}


def other_names() -> Toy:
    """A Toy whose parameters have other generated names than any before it."""
    paddle.nn.Linear(2, 3)
    return Toy(seed=9)


@pytest.mark.parametrize("name", ALL)
def test_state_round_trip(name):
    """Two updates, state into an optimizer over parameters of other Paddle names, two more: all bit-equal."""
    first = Toy()
    one = optimizer_of(first, name, **ALL[name])
    for t in (1, 2):
        update(first, one, drawn_gradients(t), 0.05)
    state = one.state_dict()
    assert all(isinstance(a, np.ndarray) for a in state.values())
    assert {key.split("|")[0] for key in state} == (set() if name == "SGD" else set(SHAPES))

    second = other_names()
    assert not {p.name for p in first.parameters()} & {p.name for p in second.parameters()}
    for key, parameter in second.named_parameters():
        parameter.set_value(first.weights()[key])
    two = optimizer_of(second, name, **ALL[name])
    two.load_state_dict(state)
    restored = two.state_dict()
    assert restored.keys() == state.keys()
    assert all(restored[k].dtype == state[k].dtype and np.array_equal(restored[k], state[k]) for k in state)
    for t in (3, 4):
        update(first, one, drawn_gradients(t), 0.02)
        update(second, two, drawn_gradients(t), 0.02)
    for key, w in first.weights().items():
        assert np.array_equal(second.weights()[key], w), key
    final = two.state_dict()
    assert all(np.array_equal(final[k], a) for k, a in one.state_dict().items())


def test_state_is_kept_apart_from_the_optimizer():
    """The arrays of a state do not follow later updates."""
    model = Toy()
    optimizer = optimizer_of(model, "Momentum")
    update(model, optimizer, drawn_gradients(1), 0.1)
    state = optimizer.state_dict()
    kept = {key: a.copy() for key, a in state.items()}
    update(model, optimizer, drawn_gradients(2), 0.1)
    assert all(np.array_equal(state[key], a) for key, a in kept.items())


def test_state_of_parameters_that_were_never_updated():
    """A parameter without gradient has no state; after loading its state is that of a beginning."""
    model = Toy()
    optimizer = optimizer_of(model, "AdamW")
    gradients = {n: g for n, g in drawn_gradients(1).items() if n != "free.vector"}
    update(model, optimizer, gradients, 0.1)
    state = optimizer.state_dict()
    assert "free.vector" not in {key.split("|")[0] for key in state}
    again = optimizer_of(other_names(), "AdamW")
    again.load_state_dict(state)
    restored = again.state_dict()
    assert all(np.array_equal(restored[key], state[key]) for key in state)
    assert not restored["free.vector|moment1"].any() and not restored["free.vector|moment2"].any()


def saved_state(name: str = "AdamW") -> dict:
    model = Toy()
    optimizer = optimizer_of(model, name)
    update(model, optimizer, drawn_gradients(1), 0.1)
    return optimizer.state_dict()


@pytest.mark.parametrize("other", ["Momentum", "SGD", "LARS", "Adafactor", "Lion", "Muon"])
def test_state_of_another_optimizer_is_refused(other):
    with pytest.raises(CheckpointError, match="another kind of optimizer"):
        optimizer_of(Toy(), other).load_state_dict(saved_state("AdamW"))


def test_state_of_another_shape_is_refused():
    state = saved_state()
    model = Toy({**SHAPES, "kept.matrix": [4, 4]})
    with pytest.raises(CheckpointError, match=r"kept\.matrix\|moment1.*\(4, 3\)"):
        optimizer_of(model, "AdamW").load_state_dict(state)


def test_state_of_an_unknown_parameter_is_refused():
    state = {**saved_state(), "gone.matrix|moment1": np.zeros([2, 2], "float32")}
    with pytest.raises(CheckpointError, match=r"gone\.matrix"):
        optimizer_of(Toy(), "AdamW").load_state_dict(state)


def test_incomplete_state_is_refused():
    """One accumulator of one parameter is missing."""
    state = saved_state()
    del state["kept.matrix|moment1"]
    with pytest.raises(CheckpointError, match=r"kept\.matrix\|moment1"):
        optimizer_of(Toy(), "AdamW").load_state_dict(state)
