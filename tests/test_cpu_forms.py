"""Layers by other kernels on CPU: the same logits, gradients and training as the plain ones, to 1e-5."""

import copy

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle import nn

from plsc import compat
from plsc.config import load
from plsc.engine import blocks
from plsc.engine.assembly import assemble
from plsc.engine.distributed import World
from plsc.models import cpu_forms
from plsc.models.layers import Attention, Dropout, DropPath, LayerScale, PatchEmbed
from tests.helpers import tiny_digits
from tests.test_model_parts import KINDS, build, images

CLOSE = 1e-5  # of the largest value


def results(model, *, training: bool = False, of_images: bool = False, dtype: str = "float32") -> dict[str, np.ndarray]:
    """Logits, and the gradients of parameters and images; None where there is no gradient."""
    model.train() if training else model.eval()
    paddle.seed(3)
    x = images().astype(dtype)
    x.stop_gradient = not of_images
    logits = model(x)
    (logits * paddle.to_tensor([1.0, -2.0, 3.0], dtype=dtype)).sum().backward()
    gradients = {name: None if p.grad is None else p.grad.numpy() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.clear_gradient(False)  # None, not zeros
    return {**gradients, "logits": logits.numpy(), "images": None if x.grad is None else x.grad.numpy()}


def assert_close(quick: dict, plain: dict) -> None:
    assert quick.keys() == plain.keys()
    for name, expected in plain.items():
        if expected is None:
            assert quick[name] is None, name
            continue
        # what softmax does not see has a gradient of rounding errors alone
        scale = max(np.abs(expected).max(), 1.0)
        np.testing.assert_allclose(quick[name], expected, rtol=0, atol=CLOSE * scale, err_msg=name)


@pytest.mark.parametrize("kind", ["plain", *KINDS])
def test_logits_and_gradients_are_the_plain_ones(kind):
    fields = KINDS.get(kind, {})
    model = build(**fields)
    plain = results(model), results(model, of_images=True)
    assert cpu_forms.use(model) > 0
    assert_close(results(model), plain[0])
    assert_close(results(model, of_images=True), plain[1])


@pytest.mark.parametrize("rate", [0.1, 0.5, 1 / 3])
def test_dropout_drops_its_rate_and_keeps_the_mean(rate):
    layer = Dropout(rate)
    assert cpu_forms.use(layer) == 1
    paddle.seed(3)
    x = paddle.ones([700, 301])
    x.stop_gradient = False
    y = layer(x)
    y.sum().backward()
    drawn = y.numpy()
    deviation = (rate * (1 - rate) / drawn.size) ** 0.5
    assert abs((drawn == 0).mean() - rate) < 4 * deviation
    np.testing.assert_allclose(np.unique(drawn), [0.0, 1 / (1 - rate)], rtol=1e-4)
    np.testing.assert_array_equal(x.grad.numpy(), drawn)  # what is dropped has no gradient
    neighbours = np.corrcoef(drawn[:, 1:].ravel(), drawn[:, :-1].ravel())[0, 1]
    assert abs(neighbours) < 4 * drawn.size**-0.5
    assert not np.array_equal(layer(x).numpy(), drawn)
    paddle.seed(3)
    np.testing.assert_array_equal(layer(x).numpy(), drawn)
    layer.eval()
    assert layer(x) is x


def test_a_model_with_dropout_repeats_by_its_seed_and_has_the_plain_dropped_branches():
    model = build(drop_path_rate=0.4, layer_scale=0.5)
    plain = results(model, training=True)
    cpu_forms.use(model)
    assert_close(results(model, training=True), plain)
    dropped = build(drop_rate=0.2, attn_drop_rate=0.3)
    without = results(dropped)
    cpu_forms.use(dropped)
    first = results(dropped, training=True)
    assert np.abs(first["logits"] - without["logits"]).max() > 0.1
    assert_close(results(dropped, training=True), first)


def test_frozen_parameters_get_no_gradient_and_change_no_other():
    """Held against the same model with nothing frozen: Paddle's own backward of a layer norm whose weight is frozen
    leaves that weight out of the gradient of its input."""
    model = build()
    everything = results(model)
    cpu_forms.use(model)
    for endings in (("norm1.bias", "proj.weight"), ("norm2.weight", "fc1.bias", "head.weight"), ("cls_token",)):
        for name, parameter in model.named_parameters():
            parameter.stop_gradient = not name.endswith(endings)
        trained = {name: v for name, v in everything.items() if name.endswith((*endings, "logits"))}
        quick = results(model)
        assert_close(quick, dict.fromkeys(quick) | trained)


def test_a_frozen_backbone_is_passed_without_gradients():
    model = build()
    for name, parameter in model.named_parameters():
        parameter.stop_gradient = not name.startswith("head.")
    cpu_forms.use(model)
    with paddle.no_grad():
        expected = model(images()).numpy()
    logits = model(images())
    logits.sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is not None] == ["head.weight", "head.bias"]
    np.testing.assert_array_equal(logits.numpy(), expected)


@pytest.mark.parametrize(
    ("centre", "spread"), [(0.0, 1.0), (30.0, 1.0), (1e3, 0.1), (1e4, 0.1), (0.0, 1e-3), (-5.0, 0.02), (2.0, 0.0)]
)
def test_layer_norm_of_rows_far_from_zero_and_of_rows_without_variance(centre, spread):
    """Held against float64, beside Paddle's own backward in float32."""
    rng = np.random.default_rng(0)
    x, dy = rng.normal(centre, spread, (7, 48)).astype("float32"), rng.normal(size=(7, 48)).astype("float32")
    layer = nn.LayerNorm(48, epsilon=1e-6)
    layer.weight.set_value(rng.normal(size=48).astype("float32"))

    def gradient(run, values):
        tensor = paddle.to_tensor(values, stop_gradient=False)
        run(tensor).backward(paddle.to_tensor(dy, dtype=tensor.dtype))
        return tensor.grad.numpy()

    plain = gradient(layer, x)
    weight = layer.weight.numpy().astype("float64")
    centred = x.astype("float64") - x.astype("float64").mean(1, keepdims=True)
    r = ((centred**2).mean(1, keepdims=True) + 1e-6) ** -0.5
    n, u = centred * r, dy * weight
    exact = r * (u - u.mean(1, keepdims=True) - n * (u * n).mean(1, keepdims=True))
    cpu_forms.use(layer)
    quick = gradient(layer, x)
    scale = np.abs(exact).max()
    error, plain_error = np.abs(quick - exact).max() / scale, np.abs(plain - exact).max() / scale
    assert error < max(2e-6, 1.5 * plain_error), (error, plain_error)


def test_a_layer_norm_of_single_values():
    layer = nn.LayerNorm(1)
    cpu_forms.use(layer)
    x = paddle.to_tensor([[1.0], [-2.0], [5.0]], stop_gradient=False)
    layer(x).backward(paddle.to_tensor([[1.0], [2.0], [3.0]]))
    assert not x.grad.any() and not layer.weight.grad.any() and layer.bias.grad.item() == 6.0


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("shape", [[200, 8], [200, 5, 8], [200, 3, 3, 8]])
def test_whole_samples_are_dropped_whatever_their_axes(quick, shape):
    layer = DropPath(0.5)
    assert not quick or cpu_forms.use(layer) == 1
    paddle.seed(3)
    y = layer(paddle.ones(shape)).numpy().reshape(200, -1)
    assert (y == y[:, :1]).all() and set(y[:, 0]) == {0.0, 2.0}
    assert 60 < (y[:, 0] == 0).sum() < 140


def test_dropout_of_everything():
    layer = Dropout(1.0)
    cpu_forms.use(layer)
    assert not layer(paddle.ones([300, 300])).any()


@pytest.mark.skipif(compat.IS_PADDLE_2, reason="Paddle 2.6 adds up no empty tensors")
@pytest.mark.parametrize(("shape", "dtype"), [([0, 5, 8], "float32"), ([2, 5, 8], "float64")])
def test_layer_scale_of_nothing_and_of_another_type(shape, dtype):
    layer = LayerScale(8, 0.5)
    cpu_forms.use(layer)
    x = paddle.ones(shape, dtype)
    x.stop_gradient = False
    y = layer(x)
    y.sum().backward()
    np.testing.assert_array_equal(y.numpy(), np.full(shape, 0.5, dtype))
    np.testing.assert_array_equal(layer.gamma.grad.numpy(), np.full(8, np.prod(shape) / 8, "float32"))


def test_a_row_of_nan_leaves_nothing_for_later_batches():
    layer = nn.LayerNorm(8)
    cpu_forms.use(layer)
    rows = [np.full((3, 8), np.nan, "float32"), np.random.default_rng(2).normal(size=(3, 8)).astype("float32")]
    for x in map(paddle.to_tensor, rows):
        x.stop_gradient = False
        layer(x)[:, 0].sum().backward()
    assert np.isfinite(x.grad.numpy()).all() and x.grad.numpy().any()


def test_float64_and_then_float32():
    """Of the same shapes, in one process."""
    model = build()
    plain = results(model)
    cpu_forms.use(model)
    for dtype in ("float32", "float64", "float32"):
        quick = results(model.to(dtype=dtype), dtype=dtype)
        assert quick["logits"].dtype == quick["head.weight"].dtype == dtype
        assert_close(quick, plain)


@pytest.mark.smoke
def test_layers_of_other_kinds_and_graphs_are_left_as_they_are():
    class OwnLinear(nn.Linear):
        pass

    model = nn.Sequential(OwnLinear(4, 4), nn.Linear(4, 4, bias_attr=False), nn.LayerNorm([3, 4]), nn.Conv2D(1, 1, 1))
    x = paddle.to_tensor(np.random.default_rng(1).normal(size=(2, 3, 4)).astype("float32"))
    expected = model[2](model[1](model[0](x))).numpy()
    assert cpu_forms.use(model) == 2
    assert type(model[0]) is OwnLinear and type(model[3]) is nn.Conv2D
    np.testing.assert_array_equal(model[2](model[1](model[0](x))).numpy(), expected)

    plain, quick = build(), build()
    cpu_forms.use(quick)
    compat.to_static(quick)
    np.testing.assert_allclose(quick(images()).numpy(), plain(images()).numpy(), rtol=0, atol=1e-5)


def test_a_copy_computes_with_its_own_weights():
    model = build()
    cpu_forms.use(model)
    before = model(images()).numpy()
    twin = copy.deepcopy(model)
    for parameter in twin.parameters():
        parameter.set_value(paddle.zeros_like(parameter))
    np.testing.assert_array_equal(model(images()).numpy(), before)
    assert not twin(images()).numpy().any()


@pytest.mark.parametrize("kind", ["plain", *KINDS])
def test_every_kind_of_recomputed_block_has_the_same_gradients(kind):
    model = build(**{**KINDS.get(kind, {}), "drop_path_rate": 0.0})
    plain = results(model)
    cpu_forms.use(model)
    blocks.recompute_blocks(model, interval=1, names=(), on_cpu=True)
    assert_close(results(model, training=True), plain)


def test_recomputed_views_have_the_same_gradients():
    """Paddle's recomputation gives the backward of a PyLayer what views hold in another order."""
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=shape).astype("float32") for shape in ((2, 5, 4), (3, 4), (3,), (2, 2, 3))]

    def gradients(run):
        x, weight, bias, dy = (paddle.to_tensor(array, stop_gradient=False) for array in arrays)
        run(lambda x: linear(norm(x[:, 1:3]), weight.t(), bias), x).backward(dy)
        return [tensor.grad.numpy() for tensor in (x, weight, bias)]

    def linear(x, weight, bias):
        return cpu_forms._Linear.apply(x, weight, bias)

    def norm(x):
        return cpu_forms._LayerNorm.apply(x, paddle.ones([4]), paddle.zeros([4]), 1e-6)

    once = gradients(lambda function, x: function(x))
    again = gradients(lambda function, x: compat.recompute(function, x, on_cpu=True))
    for quick, plain in zip(again, once, strict=True):
        np.testing.assert_allclose(quick, plain, rtol=0, atol=1e-5)


@pytest.mark.parametrize("rate", [0.0, 0.2])
def test_recomputed_blocks_have_the_same_gradients(rate):
    if rate and not compat.recompute_keeps_random_state(True):
        pytest.skip("Paddle 2.6 cannot repeat random numbers on CPU")
    model = build(drop_rate=rate, attn_drop_rate=rate)
    cpu_forms.use(model)
    once = results(model, training=True)
    blocks.recompute_blocks(model, interval=1, names=(), on_cpu=True)
    assert_close(results(model, training=True), once)


def test_training_goes_on_after_a_model_was_saved(tmp_path):
    model = build(drop_rate=0.2, attn_drop_rate=0.2, drop_path_rate=0.2)
    cpu_forms.use(model)
    before = results(model, training=True)
    model.eval()
    spec = paddle.static.InputSpec([None, *images().shape[1:]], "float32")
    paddle.jit.save(model, str(tmp_path / "model"), input_spec=[spec])
    np.testing.assert_allclose(
        paddle.jit.load(str(tmp_path / "model"))(images()).numpy(), model(images()).numpy(), atol=1e-5
    )
    assert_close(results(model, training=True), before)


def test_a_copy_of_recomputed_blocks_has_weights_of_its_own():
    model = build()
    blocks.recompute_blocks(model, interval=1, names=(), on_cpu=True)
    expected = results(model, training=True)
    copied = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.set_value(paddle.zeros_like(parameter))
    assert_close(results(copied, training=True), expected)


def test_gradients_add_up_over_two_backwards():
    model = build()
    cpu_forms.use(model)
    once = results(model)
    for _ in range(2):
        model(images()).multiply(paddle.to_tensor([1.0, -2.0, 3.0])).sum().backward()
    for name, parameter in model.named_parameters():
        np.testing.assert_allclose(parameter.grad.numpy(), 2 * once[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_attention_of_other_batch_sizes_and_lengths_uses_no_stale_order():
    attention = Attention(build().spec)
    rng = np.random.default_rng(2)
    inputs = [paddle.to_tensor(rng.normal(size=(b, n, 32)).astype("float32")) for b, n in [(2, 7), (3, 7), (2, 5)]]
    expected = [attention(x).numpy() for x in inputs]
    cpu_forms.use(attention)
    for x, y in zip(inputs * 2, expected * 2, strict=True):
        np.testing.assert_allclose(attention(x).numpy(), y, rtol=0, atol=1e-6)


def test_patches_of_pictures_that_are_not_square():
    layer = PatchEmbed((12, 8), (4, 2), 3, 5)
    x = paddle.to_tensor(np.random.default_rng(2).normal(size=(2, 3, 12, 8)).astype("float32"))
    expected = layer(x).numpy()
    cpu_forms.use(layer)
    assert layer(x).shape == [2, 12, 5]
    np.testing.assert_allclose(layer(x).numpy(), expected, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="12x8 pixels"):
        layer(x[:, :, :8])


@pytest.mark.parametrize("size", [(13, 8), (12, 9), (15, 9), (14, 8)])
def test_pixels_that_no_patch_covers_are_left_out(size):
    layer = PatchEmbed(size, (4, 2), 3, 5)
    x = paddle.to_tensor(np.random.default_rng(2).normal(size=(2, 3, *size)).astype("float32"))
    expected = layer(x).numpy()
    cpu_forms.use(layer)
    np.testing.assert_allclose(layer(x).numpy(), expected, rtol=0, atol=1e-5)


def test_bias_gradient_is_the_sum_over_all_leading_axes():
    layer = nn.Linear(3, 2)
    cpu_forms.use(layer)
    for shape in ([5, 3], [2, 4, 3], [2, 2, 2, 3]):
        layer.clear_gradients()
        F.linear(layer(paddle.ones(shape)), paddle.ones([2, 1])).sum().backward()
        np.testing.assert_allclose(layer.bias.grad.numpy(), np.full(2, np.prod(shape[:-1])), rtol=1e-6)


# -- in training --------------------------------------------------------------------------


def trainer(folder, **settings):
    tree = tiny_digits()
    tree["Model"] |= {"drop_path_rate": 0.1}
    tree["Global"] |= {"output_dir": str(folder), "accum_steps": 2, **settings}
    return assemble(load(tree), World())


def updates(made, count: int) -> list[tuple[float, float]]:
    """Loss and gradient norm of each."""
    made.model.train()
    batches = made.feed.loader.run(made.sampler.batches(0))
    figures = []
    for _ in range(count):
        norm = made.advance(batches)
        figures.append((made.mean_loss.compute()["loss"], float(norm)))
        made.mean_loss.reset()
    made.feed.loader.close()
    return figures


def forms(made) -> set[str]:
    return {type(layer).__name__ for layer in made.model.sublayers() if type(layer).__module__ == cpu_forms.__name__}


def test_training_on_cpu_takes_them_by_itself_and_learns_the_same(tmp_path):
    quick, plain = trainer(tmp_path / "quick"), trainer(tmp_path / "plain", cpu_forms=False)
    assert forms(quick) == {
        f"Cpu{part}" for part in ("Attention", "Dropout", "DropPath", "LayerNorm", "Linear", "PatchEmbed")
    }
    assert not forms(plain)
    np.testing.assert_allclose(updates(quick, 5), updates(plain, 5), rtol=1e-5)
    for name, weight in plain.model.state_dict().items():
        ours, theirs = quick.model.state_dict()[name].numpy(), weight.numpy()
        if name.endswith("qkv.bias"):  # the keys' has no effect: Adam follows rounding errors
            ours, theirs = (np.delete(values, np.s_[len(values) // 3 : -len(values) // 3]) for values in (ours, theirs))
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5, err_msg=name)


def test_compiled_blocks_and_other_devices_keep_the_plain_layers(tmp_path):
    assert not forms(trainer(tmp_path / "run", to_static=True))
    tree = tiny_digits()
    tree["Global"]["output_dir"] = str(tmp_path / "other")
    assert not forms(assemble(load(tree), World(device="npu")))
