"""Training on the device against float32 on the CPU, and against itself: within the bounds of target.py."""

import numpy as np
import pytest

from tests.device.runs import RANDOM, assert_bit_equal, assert_same, column, digits, losses, stateful, train, weights
from tests.device.target import FLOAT32, HALVES, MAIN, ON_CPU, PRECISIONS, Precision
from tests.helpers import metrics, tiny_digits

O2, NO_MASTERS = Precision("float16", "O2"), Precision("float16", "O2-no-masters")


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
def test_the_loss_follows_float32(tmp_path, reference, precision):
    """Over forty updates, in which it falls from 2.30 to 1.90."""
    on_cpu = reference(digits())
    run = train(tmp_path / "run", digits(), fp16=precision.fp16())
    apart = np.abs(losses(run) - losses(on_cpu))
    assert losses(on_cpu)[-1] < 1.95
    assert apart[:10].max() < precision.bounds.early
    assert apart.max() < precision.bounds.late
    assert (apart.max() > 0) or precision == FLOAT32, "half precision did not take part"
    norms = np.array([column(r, "grad_norm")[0] for r in (run, on_cpu)])
    assert norms[0] == pytest.approx(norms[1], rel=precision.bounds.norm)


RATES = {"Adam": 0.002, "AdamW": 0.002, "Momentum": 0.1, "SGD": 0.3, "Lamb": 0.02, "LARS": 0.2, "Adafactor": 0.05}


@pytest.mark.parametrize("optimizer", RATES)
@pytest.mark.parametrize("precision", [FLOAT32, O2, NO_MASTERS], ids=str)
def test_every_optimizer(tmp_path, reference, optimizer, precision):
    """With layer decay, several groups and frozen layers: the weights end near those of float32."""
    tree = tiny_digits()
    tree["Optimizer"] |= {"name": optimizer, "layer_decay": 0.8, "freeze": ["patch_embed.*"]}
    if optimizer in ("Adam", "AdamW", "Lamb"):
        # with their own the gradient of keys' biases, which is 0 but for a device's rounding, would move them
        tree["Optimizer"]["epsilon"] = 1e-4
    tree["LRScheduler"]["learning_rate"] = RATES[optimizer]
    tree["Model"]["head_init"] = "scheme"
    cpu = reference(tree)
    run = train(tmp_path / "run", tree, fp16=precision.fp16())
    factor = 5 if precision == NO_MASTERS else 1
    np.testing.assert_allclose(losses(run), losses(cpu), rtol=factor * precision.bounds.relative)
    start = reference({**tree, "Global": {**tree["Global"], "max_train_step": 1}})
    first, exact, ours = (weights(r) for r in (start, cpu, run))
    moved = np.sqrt(sum(np.square(exact[n] - first[n]).sum() for n in exact))
    apart = np.sqrt(sum(np.square(ours[n].astype("float32") - exact[n]).sum() for n in exact))
    assert moved > 0.01
    assert apart < factor * 0.1 * moved
    frozen = [name for name in exact if name.startswith("patch_embed")]
    for name in frozen:
        assert np.array_equal(ours[name], first[name].astype(ours[name].dtype))


MODELS = {
    "attention without SDPA": {"embed_dim": 18, "num_heads": 3},
    "hybrid": {"img_size": 32, "patch_size": 1, "embed_dim": 32, "resnet_layers": [1], "resnet_width": 0.5},
    "attention pooling": {"pool": "map"},
    "average, norm after it, no class token": {"pool": "avg", "fc_norm": True, "class_token": False},
    "registers, layer scale, tanh before the head": {
        "reg_tokens": 2,
        "no_embed_class": True,
        "layer_scale": 0.1,
        "representation_size": 24,
        "act": "gelu_tanh",
    },
    "fixed positions, scaled attention": {"pos_embed": "sincos2d", "qk_scale": 0.3, "qkv_bias": False},
}


@pytest.mark.parametrize("precision", [p for p in PRECISIONS if p.policy in ("", "O1", "O2")], ids=str)
@pytest.mark.parametrize("model", MODELS)
def test_every_part_of_a_model(tmp_path, reference, model, precision):
    tree = tiny_digits()
    tree["Global"]["max_train_step"] = 4
    tree["Model"] |= {"head_init": "scheme", **MODELS[model]}
    if "img_size" in MODELS[model]:
        size = MODELS[model]["img_size"]
        for mode in ("Train", "Eval"):
            tree["DataLoader"][mode]["dataset"]["transform_ops"].insert(0, {"ResizeImage": {"size": [size, size]}})
    # at a loss scale for gradients of 100, as these weights have them at first
    run = train(tmp_path / "run", tree, fp16=precision.fp16(init_loss_scaling=64.0))
    np.testing.assert_allclose(losses(run), losses(reference(tree)), rtol=precision.bounds.relative)


@pytest.mark.parametrize("precision", [*MAIN[:3], NO_MASTERS], ids=str)
def test_a_model_with_running_means(tmp_path, reference, repeats, precision):
    """Batch normalisation stays float32; its means are saved, and a resumed run ends as a straight one."""
    tree = tiny_digits()
    tree["Model"] = {"name": "AmpConvNet"}
    tree["Global"]["max_num_latest_checkpoint"] = -1
    cpu = reference(tree)
    straight = train(tmp_path / "straight", tree, fp16=precision.fp16())
    np.testing.assert_allclose(losses(straight), losses(cpu), rtol=precision.bounds.relative)
    for stop in (4, 10):
        again = {"max_train_step": stop, "resume": "auto"}
        broken = train(tmp_path / "broken", tree, fp16=precision.fp16(), Global=again)
    assert_same(straight, broken, exact=repeats, bound=precision.bounds.again)
    means = {name: array for name, array in weights(straight).items() if name.startswith("body.1.")}
    assert len(means) == 4
    for name, mean in means.items():
        assert mean.dtype == "float32"
        np.testing.assert_allclose(mean, weights(cpu)[name], atol=0.01)


@pytest.mark.parametrize("precision", [FLOAT32, O2], ids=str)
@pytest.mark.parametrize("loss", [{"ViTCELoss": {"type": "sigmoid"}}, {"BCELoss": {}}, {"CELoss": {"epsilon": 0.1}}])
def test_mixed_pictures_and_their_losses(tmp_path, reference, loss, precision):
    tree = tiny_digits()
    tree["Loss"] = {"Train": [loss]}
    mixing = {"Mixup": {"alpha": 0.8, "prob": 0.5}, "Cutmix": {"alpha": 1.0, "prob": 0.5}}
    tree["DataLoader"]["Train"]["dataset"]["batch_transform_ops"] = [{"TransformOpSampler": mixing}]
    tree["Metric"] = {}
    run = train(tmp_path / "run", tree, fp16=precision.fp16())
    np.testing.assert_allclose(losses(run), losses(reference(tree)), rtol=precision.bounds.relative)


# -- what must change nothing -------------------------------------------------------------


@pytest.mark.parametrize("precision", [p for p in PRECISIONS if p.policy in ("", "O1", "O2")], ids=str)
def test_recompute_changes_nothing(tmp_path, repeats, precision):
    """With dropout on: the activations computed again are those of forward."""
    tree = tiny_digits()
    tree["Model"] |= RANDOM
    plain = train(tmp_path / "plain", tree, fp16=precision.fp16())
    recompute = {"recompute": {"layerlist_interval": 1}}
    again = train(tmp_path / "again", tree, fp16=precision.fp16(), DistributedStrategy=recompute)
    assert_same(plain, again, exact=repeats, bound=precision.bounds.again)


@pytest.mark.parametrize("precision", [p for p in PRECISIONS if p.policy != "O2-half-gradients"], ids=str)
def test_compiled_blocks_train_alike(tmp_path, precision):
    tree = digits(15)
    tree["Model"] |= RANDOM
    tree["Global"] |= {"eval_during_train": True, "eval_interval": 5, "eval_unit": "step"}
    # on CPU the other kernels draw other numbers for dropout
    plain = train(tmp_path / "plain", tree, fp16=precision.fp16(), Global={"cpu_forms": False})
    static = train(tmp_path / "static", tree, fp16=precision.fp16(), Global={"to_static": True})
    np.testing.assert_allclose(losses(static), losses(plain), rtol=precision.bounds.again)
    for one, two in zip(metrics(plain, "eval"), metrics(static, "eval"), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=precision.bounds.again)


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
def test_a_resumed_run_ends_as_a_straight_one(tmp_path, repeats, precision):
    """Everything that holds state, the loss scale amid its counts too; bit-equal where the device repeats itself."""
    # overflows at first, and grows at every third good update
    fp16 = precision.fp16(init_loss_scaling=2.0**25, incr_every_n_steps=3)
    straight = train(tmp_path / "straight", stateful(), fp16=fp16)
    broken = tmp_path / "broken"
    for stop in (5, 11, 16):
        train(broken, stateful(), fp16=fp16, Global={"max_train_step": stop, "resume": "auto"})
    assert [r["step"] for r in metrics(broken)] == list(range(1, 17))
    assert_same(straight, broken, exact=repeats, bound=precision.bounds.again)
    scales = column(straight, "loss_scale")
    assert column(broken, "loss_scale") == scales
    if precision.dtype == "float16":
        assert len(set(scales)) > 2, "the loss scale should have moved"
        assert column(broken, "skipped_updates") == column(straight, "skipped_updates")
    if repeats:
        states = [(r / "checkpoints" / "step-00000016" / "trainer.json").read_text() for r in (straight, broken)]
        assert states[0] == states[1]


def test_another_device_goes_on_from_a_checkpoint(tmp_path, reference):
    """float32 on the device, then on the CPU, then on the device again."""
    tree = tiny_digits()
    tree["Global"]["max_num_latest_checkpoint"] = -1
    run = tmp_path / "run"
    for stop, place in ((4, {}), (7, {"device": "cpu"}), (10, {})):
        train(run, tree, Global={"max_train_step": stop, "resume": "auto"}, **place)
    np.testing.assert_allclose(losses(run), losses(reference(tree)), rtol=FLOAT32.bounds.relative)


@pytest.mark.skipif(ON_CPU, reason="Paddle has no half precision on CPU")
def test_another_precision_goes_on_from_a_checkpoint(tmp_path, reference):
    """float16 with masters → bfloat16 or float16 again → float32: the float32 weights are handed over without loss."""
    tree = tiny_digits()
    tree["Global"]["max_num_latest_checkpoint"] = -1
    run = tmp_path / "run"
    second = next(p for p in (Precision("bfloat16", "O2"), Precision("float16", "O1")) if not p.missing)
    for stop, fp16 in ((4, O2.fp16()), (7, second.fp16()), (10, {"level": "O0"})):
        train(run, tree, fp16=fp16, Global={"max_train_step": stop, "resume": "auto"})
    np.testing.assert_allclose(losses(run), losses(reference(tree)), rtol=O2.bounds.relative)
    kept = weights(run, step=4)
    assert {array.dtype.name for array in kept.values()} == {"float32"}
    assert any((array != array.astype("float16")).any() for array in kept.values()), "these are rounded weights"


@pytest.mark.parametrize("precision", [p for p in HALVES if p.policy == "O2"], ids=str)
def test_runs_one_after_the_other_compute_the_same(tmp_path, repeats, precision):
    """In one process, whatever ran between them."""
    runs = [train(tmp_path / str(n), stateful(4), fp16=fp16) for n, fp16 in enumerate((precision.fp16(), None))]
    again = train(tmp_path / "again", stateful(4), fp16=precision.fp16())
    assert_same(runs[0], again, exact=repeats, bound=precision.bounds.again)
    if repeats:
        assert_bit_equal(weights(again), weights(runs[0]))
