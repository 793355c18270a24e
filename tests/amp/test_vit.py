"""Vision Transformers in half precision against float32 on the CPU, and against themselves."""

import json

import numpy as np
import paddle
import pytest
from PIL import Image

import plsc
from tests.accelerator.build import DEVICE
from tests.amp.runs import (
    POLICIES,
    RANDOM,
    assert_bit_equal,
    column,
    command,
    digits,
    half,
    kernels,
    losses,
    train,
    weights,
)
from tests.helpers import metrics, tiny_digits


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory):
    """The same in float32 on the CPU."""
    return train(tmp_path_factory.mktemp("cpu") / "run", digits(), device="cpu")


def test_float32_is_the_cpus_bit_for_bit(tmp_path):
    """Dropout and averaging included: what differs below is precision alone."""
    tree = tiny_digits()
    tree["Model"] |= RANDOM
    tree["EMA"] = {"decay": 0.9}
    tree["Global"]["cpu_forms"] = False  # the device has the plain forms
    cpu, device = train(tmp_path / "cpu", tree, device="cpu"), train(tmp_path / "device", tree)
    assert losses(device).tolist() == losses(cpu).tolist()
    for part in ("model", "optimizer", "ema"):
        assert_bit_equal(weights(device, part), weights(cpu, part))


@pytest.mark.parametrize(("dtype", "early", "late"), [("float16", 0.002, 0.015), ("bfloat16", 0.012, 0.04)])
@pytest.mark.parametrize("policy", POLICIES)
def test_the_loss_follows_float32(tmp_path, on_cpu, policy, dtype, early, late):
    """Within `early` over ten updates and `late` over forty, in which it falls from 2.30 to 1.90."""
    run = train(tmp_path / "run", digits(), fp16=half(policy, dtype))
    apart = np.abs(losses(run) - losses(on_cpu))
    assert losses(on_cpu)[-1] < 1.95
    assert apart[:10].max() < early
    assert apart.max() < late
    assert apart.max() > 0, "half precision did not take part"
    norms = np.array([column(r, "grad_norm")[0] for r in (run, on_cpu)])
    assert norms[0] == pytest.approx(norms[1], rel=0.001 if dtype == "float16" else 0.005)


@pytest.mark.parametrize("to_static", [False, True])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("level", ["O1", "O2"])
def test_which_kernels_run_in_half_precision(tmp_path, level, dtype, to_static):
    """O1: products and convolutions; O2: all of the network. Never the loss, the norm of the gradients, the masters."""
    kernels()
    train(tmp_path / "run", digits(5), fp16=half(level, dtype), Global={"to_static": to_static})
    ran = kernels()
    for name in ("matmul", "matmul_grad", "conv2d", "conv2d_grad"):
        assert f"{name} float32" not in ran
        assert ran[f"{name} {dtype}"] >= 5
    inside, outside = (dtype, "float32") if level == "O2" else ("float32", dtype)
    for name in ("layer_norm", "layer_norm_grad", "softmax", "softmax_grad", "gelu", "gelu_grad"):
        assert f"{name} {outside}" not in ran
        assert ran[f"{name} {inside}"] >= 5
    for name in ("exp", "log", "logsumexp", "mean", "squared_l2_norm", "check_finite_and_unscale"):
        assert f"{name} {dtype}" not in ran, "the loss and the update are float32"
    assert (f"adamw {dtype}" in ran) == (level == "O2")


@pytest.mark.parametrize("optimizer", ["AdamW", "Adam", "Momentum", "SGD", "Lamb", "LARS", "Adafactor"])
@pytest.mark.parametrize("policy", ["O2", "O2-no-masters"])
def test_every_optimizer(tmp_path, optimizer, policy):
    """With layer decay, several groups and frozen layers: the weights end near those of float32."""
    rate = {"Adam": 0.002, "AdamW": 0.002, "Momentum": 0.1, "SGD": 0.3, "Lamb": 0.02, "LARS": 0.2, "Adafactor": 0.05}
    tree = tiny_digits()
    tree["Optimizer"] |= {"name": optimizer, "layer_decay": 0.8, "freeze": ["patch_embed.*"]}
    tree["LRScheduler"]["learning_rate"] = rate[optimizer]
    tree["Model"]["head_init"] = "scheme"
    cpu = train(tmp_path / "cpu", tree, device="cpu")
    run = train(tmp_path / "run", tree, fp16=half(policy))
    bound = 2e-3 if policy == "O2" else 1e-2
    np.testing.assert_allclose(losses(run), losses(cpu), rtol=bound)
    start = train(tmp_path / "start", tree, device="cpu", Global={"max_train_step": 1})
    first, exact, ours = (weights(r) for r in (start, cpu, run))
    moved = np.sqrt(sum(np.square(exact[n] - first[n]).sum() for n in exact))
    apart = np.sqrt(sum(np.square(ours[n].astype("float32") - exact[n]).sum() for n in exact))
    assert moved > 0.01
    assert apart < (0.1 if policy == "O2" else 0.5) * moved
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


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("model", MODELS)
def test_every_part_of_a_model(tmp_path, model, dtype):
    tree = tiny_digits()
    tree["Global"]["max_train_step"] = 4
    tree["Model"] |= {"head_init": "scheme", **MODELS[model]}
    if "img_size" in MODELS[model]:
        size = MODELS[model]["img_size"]
        for mode in ("Train", "Eval"):
            tree["DataLoader"][mode]["dataset"]["transform_ops"].insert(0, {"ResizeImage": {"size": [size, size]}})
    expected = losses(train(tmp_path / "cpu", tree, device="cpu"))
    for policy in ("O1", "O2"):  # at a loss scale for gradients of 100, as these weights have them at first
        run = train(tmp_path / policy, tree, fp16=half(policy, dtype, init_loss_scaling=64.0))
        np.testing.assert_allclose(losses(run), expected, rtol=2e-3 if dtype == "float16" else 1.5e-2)


@pytest.mark.parametrize("policy", ["O1", "O2", "O2-no-masters"])
def test_a_model_with_running_means(tmp_path, policy):
    """Batch normalisation stays float32; its means are saved, and a resumed run ends bit-equal."""
    tree = tiny_digits()
    tree["Model"] = {"name": "AmpConvNet"}
    tree["Global"]["max_num_latest_checkpoint"] = -1
    cpu = train(tmp_path / "cpu", tree, device="cpu")
    straight = train(tmp_path / "straight", tree, fp16=half(policy))
    np.testing.assert_allclose(losses(straight), losses(cpu), rtol=2e-3)
    for stop in (4, 10):
        broken = train(tmp_path / "broken", tree, fp16=half(policy), Global={"max_train_step": stop, "resume": "auto"})
    assert_bit_equal(weights(broken), weights(straight))
    means = {name: array for name, array in weights(straight).items() if name.startswith("body.1.")}
    assert len(means) == 4
    for name, mean in means.items():
        assert mean.dtype == "float32"
        np.testing.assert_allclose(mean, weights(cpu)[name], atol=0.01)


@pytest.mark.parametrize("loss", [{"ViTCELoss": {"type": "sigmoid"}}, {"BCELoss": {}}, {"CELoss": {"epsilon": 0.1}}])
def test_mixed_pictures_and_their_losses(tmp_path, loss):
    tree = tiny_digits()
    tree["Loss"] = {"Train": [loss]}
    mixing = {"Mixup": {"alpha": 0.8, "prob": 0.5}}, {"Cutmix": {"alpha": 1.0, "prob": 0.5}}
    tree["DataLoader"]["Train"]["dataset"]["batch_transform_ops"] = [{"TransformOpSampler": dict_of(mixing)}]
    tree["Metric"] = {}
    expected = losses(train(tmp_path / "cpu", tree, device="cpu"))
    np.testing.assert_allclose(losses(train(tmp_path / "run", tree, fp16=half("O2"))), expected, rtol=2e-3)


def dict_of(parts) -> dict:
    return {name: arguments for part in parts for name, arguments in part.items()}


# -- what must change nothing -------------------------------------------------------------


@pytest.mark.parametrize("policy", ["O1", "O2"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_recompute_changes_nothing(tmp_path, policy, dtype):
    """With dropout on: the activations computed again are those of forward, bit for bit."""
    tree = tiny_digits()
    tree["Model"] |= RANDOM
    kernels()
    plain = train(tmp_path / "plain", tree, fp16=half(policy, dtype))
    once = kernels()[f"matmul {dtype}"]
    again = train(
        tmp_path / "again", tree, fp16=half(policy, dtype), DistributedStrategy={"recompute": {"layerlist_interval": 1}}
    )
    assert kernels()[f"matmul {dtype}"] > 1.5 * once, "nothing was computed again"
    assert losses(again).tolist() == losses(plain).tolist()
    assert_bit_equal(weights(again), weights(plain))


@pytest.mark.parametrize("policy", ["O1", "O2", "O2-no-masters"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_compiled_blocks_train_alike(tmp_path, policy, dtype):
    tree = digits(15)
    tree["Model"] |= RANDOM
    tree["Global"] |= {"eval_during_train": True, "eval_interval": 5, "eval_unit": "step"}
    plain = train(tmp_path / "plain", tree, fp16=half(policy, dtype))
    static = train(tmp_path / "static", tree, fp16=half(policy, dtype), Global={"to_static": True})
    bound = 1e-3 if dtype == "float16" else 1e-2
    np.testing.assert_allclose(losses(static), losses(plain), rtol=bound)
    for one, two in zip(metrics(plain, "eval"), metrics(static, "eval"), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=bound)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_resumed_run_ends_bit_equal(tmp_path, policy, dtype):
    """Everything that holds state, the loss scale amid its counts included."""
    tree = tiny_digits()
    tree["Model"] |= RANDOM
    tree["Global"] |= {"max_train_step": 16, "accum_steps": 2, "max_num_latest_checkpoint": -1}
    tree["EMA"] = {"decay": 0.9}
    # overflows at first, and grows at every third good update
    scaling = {"init_loss_scaling": 2.0**25, "incr_every_n_steps": 3}
    fp16 = half(policy, dtype, **scaling)
    straight = train(tmp_path / "straight", tree, fp16=fp16)
    broken = tmp_path / "broken"
    for stop in (5, 11, 16):
        train(broken, tree, fp16=fp16, Global={"max_train_step": stop, "resume": "auto"})
    assert [r["step"] for r in metrics(broken)] == list(range(1, 17))
    assert losses(broken).tolist() == losses(straight).tolist()
    for part in ("model", "optimizer", "ema"):
        assert_bit_equal(weights(broken, part), weights(straight, part))
    scales = column(straight, "loss_scale")
    assert column(broken, "loss_scale") == scales
    if dtype == "float16":
        assert len(set(scales)) > 2, "the loss scale should have moved"
        assert column(broken, "skipped_updates") == column(straight, "skipped_updates")
    states = [(r / "checkpoints" / "step-00000016" / "trainer.json").read_text() for r in (straight, broken)]
    assert states[0] == states[1]


def test_another_precision_goes_on_from_a_checkpoint(tmp_path):
    """float16 with masters → bfloat16 → float32: the float32 weights are handed over without loss."""
    tree = tiny_digits()
    tree["Global"] |= {"max_num_latest_checkpoint": -1}
    run = tmp_path / "run"
    for stop, fp16 in ((4, half("O2")), (7, half("O2", "bfloat16")), (10, {"level": "O0"})):
        train(run, tree, fp16=fp16, Global={"max_train_step": stop, "resume": "auto"})
    straight = train(tmp_path / "float32", tree, device="cpu")
    np.testing.assert_allclose(losses(run), losses(straight), rtol=2e-3)
    kept = weights(run, step=4)
    assert {array.dtype.name for array in kept.values()} == {"float32"}
    assert any((array != array.astype("float16")).any() for array in kept.values()), "these are rounded weights"


# -- evaluation, prediction, export -------------------------------------------------------


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A float16 run with averaged weights, evaluated while it trained."""
    tree = digits(60)
    tree["Global"] |= {"eval_during_train": True, "eval_interval": 60, "eval_unit": "step"}
    tree["EMA"] = {"decay": 0.9, "ema_eval": True}
    tree["LRScheduler"]["learning_rate"] = 0.003
    folder = tmp_path_factory.mktemp("learned") / "run"
    before = paddle.get_device()
    train(folder, tree, fp16=half("O2"))
    paddle.set_device(before)
    return folder


@pytest.mark.parametrize("ema", [False, True])
def test_evaluation(learned, ema):
    """On the device the very figures of training; on the CPU, in float32, the same within half precision."""
    (logged,) = [r for r in metrics(learned, "eval") if r["weights"] == ("ema" if ema else "raw")]
    assert logged["top1"] > 0.4
    kernels()
    here = plsc.evaluate(learned, ema=ema)
    assert kernels()["matmul float16"] > 0
    assert here["samples"] == logged["samples"] == 360
    assert (here["loss"], here["top1"]) == (logged["loss"], logged["top1"])
    there = plsc.evaluate(learned, ema=ema, overrides={"Global.device": "cpu"})
    assert here["loss"] != there["loss"]
    assert here["loss"] == pytest.approx(there["loss"], abs=2e-3)
    assert abs(here["top1"] - there["top1"]) <= 2 / 360


@pytest.mark.parametrize("format", ["paddle", "onnx"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_export(learned, tmp_path, format, precision):
    """A half-precision run's masters are exported, checked on the CPU, and measure as the run does there."""
    out = tmp_path / "export"
    command("export", "--weights", learned, "--output", out, "--format", format, "--precision", precision)
    here = plsc.evaluate(out, str(learned / "config.yaml"), overrides={"Global.device": "cpu"})
    there = plsc.evaluate(learned, overrides={"Global.device": "cpu"})
    assert here["samples"] == 360
    assert here["loss"] == pytest.approx(there["loss"], abs=1e-5 if precision == "fp32" else 2e-3)


def test_weights_that_are_half_precision(tmp_path):
    """Without masters a checkpoint holds float16; it is evaluated, exported and trained on like any other."""
    tree = digits(5)
    run = train(tmp_path / "run", tree, fp16=half("O2-no-masters"))
    assert "float16" in {array.dtype.name for array in weights(run).values()}
    command("export", "--weights", run, "--output", tmp_path / "export")
    device, cpu = (plsc.evaluate(run, overrides={"Global.device": name}) for name in (DEVICE, "cpu"))
    export = plsc.evaluate(tmp_path / "export", str(run / "config.yaml"), overrides={"Global.device": "cpu"})
    assert device["loss"] == pytest.approx(cpu["loss"], abs=1e-3)
    assert export["loss"] == pytest.approx(cpu["loss"], abs=1e-5)
    tuned = train(tmp_path / "tuned", tree, device="cpu", Global={"pretrained_model": str(run)})
    assert losses(tuned)[0] < losses(run)[0] - 0.01


@pytest.mark.parametrize("export", [False, True])
def test_prediction_on_the_device(learned, tmp_path, export):
    """The same classes as on the CPU, from weights and from an export in Paddle Inference."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    rng = np.random.default_rng(0)
    for i in range(5):
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype="uint8")).save(pictures / f"{i}.png")
    path = learned
    if export:
        path = tmp_path / "export"
        command("export", "--weights", learned, "--output", path)
    rows = {}
    for device in (DEVICE, f"{DEVICE}:1", "cpu"):
        kernels()
        output = tmp_path / "rows.jsonl"
        command("predict", pictures, "--weights", path, "--device", device, "--output", output)
        rows[device] = [json.loads(line) for line in output.read_text().splitlines()]
        assert (kernels().get("matmul float32", 0) > 0) == (device != "cpu"), device
    for a, b in zip(rows[DEVICE], rows["cpu"], strict=True):
        assert [c["class"] for c in a["predictions"]] == [c["class"] for c in b["predictions"]]
