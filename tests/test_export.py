"""plsc export: what the runtimes compute, what is refused, and what is left when something goes wrong."""

import dataclasses
import json
import math
import re
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paddle import inference
from PIL import Image

from plsc import export as exporting
from plsc import loading, predictor
from plsc.cli.main import main
from plsc.config import load as load_recipe
from plsc.data.preprocess import Preprocess
from plsc.errors import CheckpointError, ConfigError, DataError, DeviceError
from plsc.export import graph as export_graph
from plsc.export import write as export_write
from plsc.model_card import ModelCard
from plsc.models import VisionTransformer, ViTSpec
from plsc.models.deploy import cubic_matrix
from plsc.models.resnet import StdConv2D
from plsc.models.spec import reduced, reduction
from plsc.weights import Source, read, write
from tests.helpers import CHECKOUT, SHARED, clean_environment, plsc, tiny_digits, write_config

MODELS = {
    "plain": dict(representation_size=12),
    "hybrid": dict(resnet_layers=(1, 1), patch_size=1),
    "registers": dict(reg_tokens=2, layer_scale=0.5, act="gelu_tanh"),
}
DEIT = SHARED / "weights" / "deit_tiny_patch16_224" / "timm.safetensors"


def write_model(path: Path, *, preprocess: Preprocess | None = None, class_names=None, seed=0, **fields) -> Path:
    """A weights file of plsc with random weights: a ViT of 10 classes for pictures of 32 pixels."""
    spec = dict(img_size=32, patch_size=8, class_num=10, embed_dim=16, depth=2, num_heads=2, mlp_ratio=2.0)
    spec = ViTSpec(**{**spec, **fields})
    rng = np.random.default_rng(seed)
    arrays = {
        name: rng.normal(p.numpy(), 0.3).astype("float32") for name, p in VisionTransformer(spec).named_parameters()
    }
    size = spec.img_size
    mean = (0.4,) * spec.in_chans
    preprocess = preprocess or Preprocess(resize=size + 4, crop=(size, size), mean=mean, std=(0.25,) * spec.in_chans)
    card = ModelCard(
        model="VisionTransformer", spec=dataclasses.asdict(spec), preprocess=preprocess, class_names=class_names
    )
    write(Source.of_arrays(path, arrays, card), "safetensors", path)
    return path


def images(batch: int, height=32, width=32, channels=3, seed=3) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(batch, channels, height, width)).astype("float32")


@paddle.no_grad()
def dygraph(network, batch) -> np.ndarray:
    return network(paddle.to_tensor(batch)).numpy()


def at_size(path, height: int, width: int):
    """The model with its position embedding resized as on loading, for pictures that need not be square."""
    source = read(path)
    network = VisionTransformer(ViTSpec(**{**source.card.spec, "img_size": (height, width)}))
    loading.load_pretrained(network, source, strict=True, resized=True)
    network.eval()
    return network


def exported(path, output, **options) -> predictor.Predictor:
    exporting.export(loading.load_model(path), output, **options)
    return predictor.load_predictor(output)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Weights files of the three kinds of models."""
    folder = tmp_path_factory.mktemp("models")
    return {name: write_model(folder / f"{name}.safetensors", **fields) for name, fields in MODELS.items()}


@pytest.fixture
def model(models, tmp_path):
    """A copy of the plain one, in a folder of its own."""
    return Path(shutil.copy(models["plain"], tmp_path / "plain.safetensors"))


# -- agreement ----------------------------------------------------------------------------


@pytest.mark.parametrize("resolution", [None, 48])
def test_weights_that_are_loaded_whole_are_not_drawn_before(tmp_path, monkeypatch, resolution):
    path = write_model(tmp_path / "weights.safetensors", weight_init="timm", head_init="scheme")
    load, before = loading.load_pretrained, []

    def spied(network, *rest, **options):
        before.extend(p.abs().max().item() for p in network.parameters() if p.ndim == 2)
        return load(network, *rest, **options)

    monkeypatch.setattr(loading, "load_pretrained", spied)
    network = loading.load_model(path, img_size=resolution).network
    assert len(before) == 9 and not any(before)
    expected = read(path).tensors
    for name, value in network.state_dict().items():
        if name != "pos_embed":
            np.testing.assert_array_equal(value.numpy(), expected[name].read(), err_msg=name)


@pytest.mark.parametrize("format", ["paddle", "onnx"])
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("resolution", [None, 48])
def test_an_export_of_one_resolution_agrees(models, tmp_path, kind, format, resolution):
    """The network that is rebuilt from the file, untouched, is the measure."""
    expected = loading.load_model(models[kind], img_size=resolution).network
    loaded = loading.load_model(models[kind], img_size=resolution)
    exporting.export(loaded, tmp_path / "out", format=format)
    run = predictor.load_predictor(tmp_path / "out").run
    for rows in (1, 7):
        batch = images(rows, *[resolution or 32] * 2)
        np.testing.assert_allclose(run(batch), dygraph(expected, batch), rtol=0, atol=1e-4)


@pytest.mark.parametrize("format", ["paddle", "onnx"])
@pytest.mark.parametrize("kind", MODELS)
def test_a_dynamic_export_agrees_at_any_size(models, tmp_path, kind, format):
    run = exported(models[kind], tmp_path / "out", format=format, dynamic=True).run
    for rows, height, width in ((1, 32, 32), (7, 48, 48), (2, 16, 24), (1, 72, 40)):
        batch = images(rows, height, width)
        expected = dygraph(at_size(models[kind], height, width), batch)
        np.testing.assert_allclose(run(batch), expected, rtol=0, atol=1e-4)


@pytest.mark.smoke
def test_paddle_inference_agrees(models, tmp_path):
    """What Paddle 2 can do, too: fixed and dynamic, in its own file format."""
    for dynamic, size in ((False, 32), (True, 40)):
        run = exported(models["hybrid"], tmp_path / "out", format="paddle", dynamic=dynamic).run
        batch = images(3, size, size)
        np.testing.assert_allclose(run(batch), dygraph(at_size(models["hybrid"], size, size), batch), rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        dict(pool="avg", fc_norm=True, no_embed_class=True, reg_tokens=3),
        dict(pool="map", class_token=False),
        dict(pos_embed="sincos2d", qk_scale=0.1),
        dict(resnet_layers=(), patch_size=2),
        dict(img_size=30, resnet_layers=(2, 1), patch_size=1),  # odd sides after the stem
        dict(resnet_layers=(1, 1, 1), resnet_width=0.5, resnet_norm="jeonsworld", patch_size=1),
        dict(embed_dim=24, num_heads=8, in_chans=1),
    ],
    ids=lambda fields: "-".join(fields),
)
def test_other_architectures_agree(tmp_path, fields):
    path = write_model(tmp_path / "model.safetensors", **fields)
    size, channels = fields.get("img_size", 32), fields.get("in_chans", 3)
    batch = images(2, size, size, channels)
    expected = dygraph(loading.load_model(path).network, batch)
    for format in ("paddle", "onnx"):
        run = exported(path, tmp_path / format, format=format).run
        np.testing.assert_allclose(run(batch), expected, rtol=0, atol=1e-4)


def test_a_model_of_one_size(tmp_path, capsys):
    """Rotary positions are of one size: the export's message says so, and other sizes are refused with the reason."""
    path = write_model(tmp_path / "rope.safetensors", rope="axial", pos_embed="none", no_embed_class=True)
    arguments = ["export", "--weights", str(path), "--format", "onnx", "--output", str(tmp_path / "out")]
    assert main([*arguments, "--resolution", "dynamic"]) == 2
    error = capsys.readouterr().err
    assert str(path) in error and "rotary embeddings or biases by relative position, which are of one size" in error
    assert not (tmp_path / "out").exists()
    assert main([*arguments, "--resolution", "48"]) == 0
    message = "takes pictures of 48x48 pixels alone, as its positions are rotary or relative; for another size export"
    assert message in capsys.readouterr().out
    with pytest.raises(CheckpointError, match=r"takes pictures of 48x48 pixels only; export it with --resolution 32$"):
        predictor.load_predictor(tmp_path / "out", img_size=32)


@pytest.mark.slow
def test_jeonsworlds_hybrid_of_any_size(tmp_path):
    """Its padding is the same whatever the size."""
    fields = dict(resnet_layers=(1, 1, 1), resnet_width=0.5, resnet_norm="jeonsworld", patch_size=1)
    path = write_model(tmp_path / "model.safetensors", **fields)
    run = exported(path, tmp_path / "out", format="onnx", dynamic=True).run
    for height, width in ((32, 32), (48, 80)):
        batch = images(1, height, width)
        expected = dygraph(at_size(path, height, width), batch)
        np.testing.assert_allclose(run(batch), expected, rtol=0, atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(old=st.integers(1, 24), new=st.integers(2, 40), seed=st.integers(0, 9))
def test_positions_are_resized_as_paddle_resizes_pictures(old, new, seed):
    """To 2 or more; to 1 Paddle takes the first pixel."""
    rows = np.random.default_rng(seed).normal(size=(1, 1, old, 3)).astype("float32")
    picture = paddle.to_tensor(rows)
    expected = F.interpolate(picture, size=[new, 3], mode="bicubic", align_corners=False)[0, 0].numpy()
    matrix = cubic_matrix(paddle.to_tensor(new), old).numpy()
    np.testing.assert_allclose(matrix @ rows[0, 0], expected, atol=2e-5)


def test_a_dynamic_hybrid_refuses_sizes_that_its_padding_does_not_fit(models, tmp_path):
    """Also in the runtimes themselves: another size would silently be padded otherwise."""
    import onnxruntime

    exported(models["hybrid"], tmp_path / "out", format="onnx", dynamic=True)
    with pytest.raises(DataError, match="multiples of 8"):
        predictor.load_predictor(tmp_path / "out").run(images(1, 36, 32))
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    for height, width in ((36, 32), (32, 36)):
        with pytest.raises(Exception, match="reshaped"):
            session.run(None, {"image": images(1, height, width)})


@pytest.mark.parametrize("layers", [None, (), (1,), (1, 2), (1, 1, 1), (3, 4, 6, 3)])
def test_a_resnets_reduction_is_that_of_its_halvings_one_by_one(layers):
    expected = 1
    for _ in () if layers is None else range(2 + len(layers[1:])):
        expected *= 2
    assert reduction(layers) == expected
    for size in (1, 2, 31, 224, 225, 383):
        halved = size
        for _ in range(expected.bit_length() - 1):
            halved = math.ceil(halved / 2)
        assert reduced(size, layers) == halved


def test_a_hybrid_of_an_odd_size_is_not_exported_as_dynamic(tmp_path):
    path = write_model(tmp_path / "model.safetensors", img_size=30, resnet_layers=(1,), patch_size=1)
    with pytest.raises(CheckpointError, match="multiples of 4 pixels"):
        exported(path, tmp_path / "out", format="paddle", dynamic=True)


@pytest.mark.slow
@pytest.mark.shared
def test_deit_tiny_agrees_and_names_the_same_classes(tmp_path, capsys):
    pictures = SHARED / "data" / "imagenette" / "val" / "n03000684"
    recipe = ["-c", "DeiT_tiny_patch16_224_eval", "--weights", str(DEIT)]
    for format in ("paddle", "onnx"):
        output = str(tmp_path / format)
        assert main(["export", *recipe, "--format", format, "--output", output, "--resolution", "dynamic"]) == 0
    differences = re.findall(r"largest difference (\S+) of logits", capsys.readouterr().out)
    assert len(differences) == 8 and all(float(difference) < 1e-4 for difference in differences)
    lists = []
    for model in (recipe, ["--weights", str(tmp_path / "paddle")], ["--weights", str(tmp_path / "onnx")]):
        assert main(["predict", *model, "--format", "jsonl", "--topk", "3", str(pictures)]) == 0
        records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        lists.append([(r["image"], [p["class"] for p in r["predictions"]]) for r in records])
    assert len(lists[0]) == 50 and lists[0] == lists[1] == lists[2]
    assert sum(actual[0] == 491 for _, actual in lists[0]) > 30  # 491 is the chain saw


# -- float16 ------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["paddle", "onnx"])
def test_float16_weights_are_the_rounded_ones(models, tmp_path, format, capsys):
    """Half the size, and the logits of a model whose matrices NumPy has rounded."""
    expected = loading.load_model(models["registers"]).network
    for p in expected.parameters():
        if p.ndim > 1:
            p.set_value(p.numpy().astype("float16").astype("float32"))
    options = ["--weights", str(models["registers"]), "--format", format]
    for precision in ("fp32", "fp16"):
        assert main(["export", *options, "--precision", precision, "--output", str(tmp_path / precision)]) == 0
    assert "the check ran in float32" in capsys.readouterr().out
    weights = {"paddle": "inference.pdiparams", "onnx": "model.onnx"}[format]
    whole, half = ((tmp_path / precision / weights).stat().st_size for precision in ("fp32", "fp16"))
    stored = sum(p.size for p in expected.parameters() if p.ndim > 1)
    assert whole - half > 1.5 * stored
    batch = images(7)
    logits = predictor.load_predictor(tmp_path / "fp16").run(batch)
    np.testing.assert_allclose(logits, dygraph(expected, batch), rtol=0, atol=1e-4)
    about = json.loads((tmp_path / "fp16" / "export.json").read_text())
    assert about["precision"] == "fp16" and about["computes_in"] == "fp32"
    assert {c["reference"] for c in about["check"]} == {
        "its float16 weights, computed in float32",
        "the float32 model",
    }


def test_a_kernel_is_standardised_channel_by_channel():
    conv = StdConv2D(3, 5, 4)
    kernel = 3.0 + 2.0 * np.random.default_rng(0).standard_normal((5, 3, 4, 4))
    conv.weight.set_value(kernel.astype("float32"))
    flat = kernel.astype("float32").astype("float64").reshape(5, -1)
    expected = np.array([(row - row.mean()) / (row.std() + 1e-5) for row in flat])
    np.testing.assert_allclose(conv.standardised().numpy().reshape(5, -1), expected, atol=1e-5)


def test_weights_outside_float16_are_refused(tmp_path):
    path = write_model(tmp_path / "model.safetensors")
    source = read(path)
    arrays = {name: source.read(name).copy() for name in source.tensors}
    arrays["blocks.1.mlp.fc2.weight"][0, 0] = 70000.0
    write(Source.of_arrays(path, arrays, source.card), "safetensors", tmp_path / "large.safetensors")
    with pytest.raises(CheckpointError, match=r"blocks\.1\.mlp\.fc2\.weight holds values outside float16"):
        exported(tmp_path / "large.safetensors", tmp_path / "out", format="paddle", precision="fp16")
    assert not (tmp_path / "out").exists()


# -- what is written ----------------------------------------------------------------------


def test_the_folder_says_all_that_serving_needs(tmp_path):
    names = [f"kind {i}" for i in range(10)]
    preprocess = Preprocess(resize=36, crop=(32, 32), mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7), backend="cv2")
    path = write_model(tmp_path / "model.safetensors", class_names=names, preprocess=preprocess)
    model = exported(path, tmp_path / "out", format="onnx")
    assert {f.name for f in (tmp_path / "out").iterdir()} == {
        "model.onnx",
        "preprocess.json",
        "classes.json",
        "export.json",
    }
    assert model.card.preprocess == preprocess and model.card.class_names == names
    assert (model.kind, model.size, model.channels, model.batch) == ("onnx", (32, 32), 3, None)
    about = json.loads((tmp_path / "out" / "export.json").read_text())
    assert about["input_shape"] == [None, 3, 32, 32] and ViTSpec(**about["spec"]).embed_dim == 16
    assert about["origin"] == str(path) and about["versions"]["paddle"] == paddle.__version__
    checked = [(c["batch"], c["tolerance"], c["difference"] <= 1e-4) for c in about["check"]]
    assert checked == [(1, 1e-4, True), (7, 1e-4, True)]


def test_an_onnx_file_is_tidy(models, tmp_path):
    """Named ends, no constant without a reader, and GroupNorm's epsilon as the model has it."""
    import onnx

    exported(models["hybrid"], tmp_path / "out", format="onnx")
    graph = onnx.load(tmp_path / "out" / "model.onnx").graph
    (entry,), (end,) = graph.input, graph.output
    shapes = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in (entry, end)]
    assert (entry.name, end.name, shapes) == ("image", "logits", [["batch", 3, 32, 32], ["batch", 10]])
    read_names = {name for node in graph.node for name in node.input}
    assert all(node.output[0] in read_names for node in graph.node if node.op_type == "Constant")
    epsilons = [
        attribute.f
        for node in graph.node
        if node.op_type == "InstanceNormalization"
        for attribute in node.attribute
        if attribute.name == "epsilon"
    ]
    assert len(epsilons) == 9 and np.allclose(epsilons, 1e-6)  # the stem's, and 4 of each stage's unit


def test_a_fixed_batch_is_exported_and_filled_up(models, tmp_path):
    exporting.export(loading.load_model(models["plain"]), tmp_path / "out", format="onnx", batch=4)
    model = predictor.load_predictor(tmp_path / "out")
    assert model.batch == 4
    batch = images(7)
    expected = dygraph(loading.load_model(models["plain"]).network, batch)
    np.testing.assert_allclose(model.run(batch), expected, rtol=0, atol=1e-4)
    np.testing.assert_allclose(model.run(batch[:1]), expected[:1], rtol=0, atol=1e-4)


def test_weights_of_an_onnx_file_are_those_of_the_model(models, tmp_path):
    """The head's matrix stands in the file bit for bit."""
    import onnx
    from onnx import numpy_helper

    exported(models["plain"], tmp_path / "out", format="onnx")
    head = read(models["plain"]).read("head.weight")
    graph = onnx.load(tmp_path / "out" / "model.onnx").graph
    constants = [
        numpy_helper.to_array(a.t) for node in graph.node for a in node.attribute if node.op_type == "Constant"
    ]
    assert any(c.shape == head.shape and (c == head).all() for c in constants)


# -- PLSC's form --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory):
    """A finished run of some updates on digits, as PLSC's fine-tuning has it: O2, finetune."""
    folder = tmp_path_factory.mktemp("run")
    tree = tiny_digits()
    tree["Global"] |= {"output_dir": str(folder / "run"), "max_train_step": 4}
    tree["FP16"] = {"level": "O2"}
    tree["EMA"] = {"decay": 0.9}
    plsc("train", "-c", write_config(folder / "train.yaml", tree), cwd=folder)
    return folder / "run"


def test_tools_export_keeps_the_trained_head(run_directory, tmp_path):
    """PLSC strips the head of a configuration with finetune: True, and stumbles over O2."""
    tree = tiny_digits()
    tree["Global"] |= {"finetune": True, "pretrained_model": str(run_directory), "output_dir": str(tmp_path / "run")}
    tree["FP16"] = {"level": "O2"}
    tree["Export"] = {"export_type": "onnx", "input_shape": ["None", 1, 8, 8]}
    config = write_config(tmp_path / "export.yaml", tree)
    script = [sys.executable, str(CHECKOUT / "tools" / "export.py"), "-c", str(config)]
    done = subprocess.run(script, env=clean_environment(), cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    batch = images(5, 8, 8, 1)
    expected = dygraph(loading.load_model(run_directory).network, batch)
    logits = predictor.load_predictor(tmp_path / "run" / "export" / "model.onnx").run(batch)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)


def test_a_runs_own_config_exports_the_models_size(run_directory, tmp_path, process_state):
    config = str(run_directory / "config.yaml")
    weights = f"Global.pretrained_model={run_directory}"
    assert main(["export", "-c", config, "-o", weights, "--output", "out"]) == 0
    assert predictor.load_predictor("out").size == (8, 8)


def test_a_run_whose_best_weights_are_averaged_says_so(run_directory, process_state, capsys):
    run = Path(shutil.copytree(run_directory, "run"))
    latest = (run / "checkpoints" / "latest").read_text().split()[0]
    record = {"metric": "top1", "value": 0.5, "step": 4, "weights": "ema"}
    (run / "checkpoints" / "best").write_text(f"{latest}\n{json.dumps(record)}\n")
    for options, weights in (([], "raw"), (["--ema"], "ema")):
        assert main(["export", "--weights", "run", *options, "--output", weights]) == 0
        assert ("--ema takes them" in capsys.readouterr().out) == (weights == "raw")
        assert json.loads(Path(weights, "export.json").read_text())["weights"] == weights


def test_the_help_tells_the_checks_own_tolerance(capsys):
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    printed = re.search(r"logit in the check; default: ([\d.e-]+)", " ".join(capsys.readouterr().out.split()))[1]
    assert float(printed) == exporting.TOLERANCE


def test_ema_exports_the_averaged_weights(run_directory, process_state):
    assert main(["export", "--weights", str(run_directory), "--ema", "--output", "out"]) == 0
    batch = images(2, 8, 8, 1)
    averaged = dygraph(loading.load_model(run_directory, weights="ema").network, batch)
    raw = dygraph(loading.load_model(run_directory).network, batch)
    logits = predictor.load_predictor("out").run(batch)
    np.testing.assert_allclose(logits, averaged, rtol=0, atol=1e-4)
    assert np.abs(averaged - raw).max() > 1e-3


SHAPES = {
    "[2, 1, 8, 8]": (2, (8, 8)),
    "[None, 1, 12, 12]": (None, (12, 12)),
    "[-1, 1, -1, -1]": (None, None),
    "null": (None, (8, 8)),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_input_shape_is_honoured(run_directory, process_state, shape):
    config = write_config(Path("run.yaml"), tiny_digits())
    options = ["-o", f"Global.pretrained_model={run_directory}", "-o", f"Export.input_shape={shape}"]
    assert main(["export", "-c", str(config), *options, "--output", "out"]) == 0
    batch, size = SHAPES[shape]
    assert json.loads(Path("out/export.json").read_text())["input_shape"] == [batch, 1, *(size or (None, None))]
    assert predictor.load_predictor("out").batch == batch


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ("[None, 3, 8, 8]", "3 channels, but Model.in_chans is 1"),
        ("[None, 1, 8]", "batch, channels, height, width"),
        ("[0, 1, 8, 8]", "batch, channels, height, width"),
        ("[None, 1, 8, 12]", "another square"),
        ("[None, 1, 8, None]", "another square"),
    ],
)
def test_wrong_input_shapes_are_reported(run_directory, process_state, capsys, shape, message):
    config = write_config(Path("run.yaml"), tiny_digits())
    options = ["-o", f"Global.pretrained_model={run_directory}", "-o", f"Export.input_shape={shape}"]
    assert main(["export", "-c", str(config), *options, "--output", "out"]) == 2
    error = capsys.readouterr().err
    assert "Export.input_shape" in error and message in error
    assert not Path("out").exists()


# -- what goes wrong ----------------------------------------------------------------------


@pytest.fixture
def disturbed(monkeypatch):
    """Exports whose bias of the head is 0.001 off."""
    simplify = VisionTransformer.simplify

    def disturb(network, **options):
        simplify(network, **options)
        network.head.bias.set_value(network.head.bias + 1e-3)

    monkeypatch.setattr(VisionTransformer, "simplify", disturb)


@pytest.mark.parametrize("format", ["paddle", "onnx"])
def test_an_export_that_computes_something_else_is_not_written(model, process_state, disturbed, capsys, format):
    options = ["export", "--weights", str(model), "--format", format, "--output", "out"]
    assert main(options) == 2
    error = capsys.readouterr().err
    assert "does not compute what the model does" in error and "1.0e-03 of logits" in error
    assert list(Path.cwd().iterdir()) == [model]
    assert main([*options, "--tolerance", "0.01"]) == 0


def test_a_failed_export_leaves_the_earlier_one(model, process_state, monkeypatch):
    options = ["export", "--weights", str(model), "--output", "out"]
    assert main(options) == 0
    before = {file.name: file.read_bytes() for file in Path("out").iterdir()}

    def full(*arguments, **keywords):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export_write, "write_json", full)
    assert main(options) == 2
    assert {file.name: file.read_bytes() for file in Path("out").iterdir()} == before
    assert sorted(p.name for p in Path.cwd().iterdir()) == ["out", "plain.safetensors"]


@pytest.mark.parametrize("format", ["paddle", "onnx"])
def test_a_full_disk_is_reported_as_such(model, process_state, monkeypatch, capsys, format):
    """Paddle writes its file short without an error; the first to notice was paddle2onnx, which blamed the model."""
    save = paddle.jit.save

    def full(path):
        raise OSError(28, "No space left on device")

    def short(*arguments, **keywords):
        save(*arguments, **keywords)
        (weights,) = Path.cwd().glob(".writing-*/inference.pdiparams")
        weights.write_bytes(weights.read_bytes()[:100])
        monkeypatch.setattr(export_graph, "sync", full)

    monkeypatch.setattr(paddle.jit, "save", short)
    assert main(["export", "--weights", str(model), "--output", "out", "--format", format]) == 2
    assert capsys.readouterr().err.endswith("/out: could not be written: No space left on device\n")
    assert list(Path.cwd().iterdir()) == [model]


def test_an_export_replaces_an_export_and_what_a_kill_left(model, process_state):
    Path(".writing-out").mkdir()
    Path(".writing-out/model.onnx").write_bytes(b"half")
    assert main(["export", "--weights", str(model), "--output", "out"]) == 0
    assert main(["export", "--weights", str(model), "--output", "out", "--format", "onnx"]) == 0
    assert {f.name for f in Path("out").iterdir()} == {"model.onnx", "preprocess.json", "export.json"}
    assert sorted(p.name for p in Path.cwd().iterdir()) == ["out", "plain.safetensors"]


def test_other_things_are_not_overwritten(model, process_state, capsys):
    Path("folder").mkdir()
    Path("folder/thesis.txt").write_text("years of work")
    Path("file").write_text("more")
    for output, message in (("folder", "something other than an export"), ("file", "is a file")):
        assert main(["export", "--weights", str(model), "--output", output]) == 2
        assert message in capsys.readouterr().err
    assert Path("folder/thesis.txt").read_text() == "years of work"


def test_what_a_user_put_beside_an_export_is_kept(model, process_state, capsys):
    options = ["export", "--weights", str(model), "--output", "out"]
    assert main(options) == 0
    Path("out/notes").mkdir()
    names = ["README.md", "labels.csv", "run.sh"]
    for name in names:
        Path("out", name).write_text("mine")
    before = {file.name: file.read_bytes() for file in Path("out").iterdir() if file.is_file()}
    assert main(options) == 2
    printed = capsys.readouterr().err
    assert "README.md, labels.csv, notes and 1 more, which would be lost" in printed and "another --output" in printed
    assert {file.name: file.read_bytes() for file in Path("out").iterdir() if file.is_file()} == before
    Path("out/notes").rmdir()
    for name in names:
        Path("out", name).unlink()
    assert main(options) == 0


def test_what_comes_into_the_folder_during_the_export_is_kept(model, process_state, monkeypatch, capsys):
    options = ["export", "--weights", str(model), "--output", "out"]
    assert main(options) == 0
    check = export_write.compare

    def meanwhile(*arguments):
        Path("out/thesis.txt").write_text("years of work")
        return check(*arguments)

    monkeypatch.setattr(export_write, "compare", meanwhile)
    assert main(options) == 2
    assert "thesis.txt" in capsys.readouterr().err and Path("out/thesis.txt").read_text() == "years of work"
    assert sorted(p.name for p in Path.cwd().iterdir()) == ["out", "plain.safetensors"]


def test_weights_that_do_not_say_how_pictures_enter_need_a_recipe(model, process_state, capsys):
    assert main(["convert", str(model), "--to", "timm", "--output", "timm.safetensors", "--backbone"]) == 0
    assert main(["export", "--weights", "timm.safetensors", "--output", "out"]) == 2
    assert "no head" in capsys.readouterr().err
    write(read(model).with_card(preprocess=None), "safetensors", "bare.safetensors")
    assert main(["export", "--weights", "bare.safetensors", "--output", "out"]) == 2
    error = capsys.readouterr().err
    assert "bare.safetensors" in error and "-c RECIPE" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "out"], "--weights PATH"),
        (["--weights", "plain.safetensors"], "--output FOLDER"),
        (["--weights", "plain.safetensors", "--output", "out", "-o", "Global.seed=1"], "-c RECIPE"),
        (["--weights", "nothing", "--output", "out"], "no such file or folder"),
        (["--weights", "plain.safetensors", "--ema", "--output", "out"], "no averaged weights"),
        (["--weights", "plain.safetensors", "--resolution", "4", "--output", "out"], "holds no patch"),
    ],
)
def test_wrong_uses_are_reported(model, process_state, capsys, arguments, message):
    assert main(["export", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        *(["--resolution", text] for text in ("large", "0", "²")),
        *(["--tolerance", text] for text in ("-1", "0", "inf", "nan", "small")),
        ["--format", "tflite"],
    ],
)
def test_wrong_values_are_reported(capsys, arguments):
    with pytest.raises(SystemExit) as stopped:
        main(["export", "--weights", "x", "--output", "out", *arguments])
    assert stopped.value.code == 2 and arguments[0] in capsys.readouterr().err


def test_an_export_is_not_exported_again(model, process_state, capsys):
    assert main(["export", "--weights", str(model), "--output", "out"]) == 0
    assert main(["export", "--weights", "out", "--output", "again"]) == 2
    assert "is an export already" in capsys.readouterr().err


def test_a_dynamic_export_does_not_resize_bilinear(run_directory, process_state, capsys):
    config = str(write_config(Path("run.yaml"), tiny_digits()))
    options = ["-o", "Global.position_embedding=bilinear", "--weights", str(run_directory), "--resolution", "dynamic"]
    assert main(["export", "-c", config, *options, "--output", "out"]) == 2
    assert "Global.position_embedding" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["paddle2onnx", "onnxruntime"])
def test_a_missing_library_is_reported_with_its_remedy(model, process_state, monkeypatch, capsys, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    assert main(["export", "--weights", str(model), "--format", "onnx", "--output", "out"]) == 2
    assert "pip install" in (printed := capsys.readouterr().err) and missing in printed
    assert not Path("out").exists()


def test_weights_too_large_for_an_onnx_file_are_refused_before_they_are_written(model, tmp_path, monkeypatch):
    loaded = loading.load_model(model)
    size = 4 * sum(p.size for p in loaded.network.parameters())
    monkeypatch.setattr(export_write, "_ONNX_LIMIT", size - 1)
    with pytest.raises(CheckpointError, match="--precision fp16"):
        exporting.export(loaded, tmp_path / "out", format="onnx")
    exporting.export(loaded, tmp_path / "out", format="onnx", precision="fp16")


# -- loading ------------------------------------------------------------------------------

PADDLE_2_PROGRAM = """
import sys
import numpy as np
import paddle

paddle.enable_static()
with paddle.pir_utils.OldIrGuard():
    main, start = paddle.static.Program(), paddle.static.Program()
    with paddle.static.program_guard(main, start):
        image = paddle.static.data("image", [None, 3, 4, 4], "float32")
        weight = paddle.static.create_parameter([48, 5], "float32", name="weight")
        block = main.global_block()
        end = block.create_var(name="end", dtype="float32", shape=[-1, 5])
        sides = {"x_num_col_dims": 1, "y_num_col_dims": 1}
        block.append_op(type="mul", inputs={"X": [image], "Y": [weight]}, outputs={"Out": [end]}, attrs=sides)
    executor = paddle.static.Executor(paddle.CPUPlace())
    executor.run(start)
    np.save(sys.argv[1] + "/weight.npy", np.array(paddle.static.global_scope().find_var("weight").get_tensor()))
    paddle.static.save_inference_model(sys.argv[1] + "/inference", [image], [end], executor, program=main)
"""


def test_paddle_2s_files_are_read(tmp_path):
    """A .pdmodel, by its folder, its file and its name without ending."""
    script = [sys.executable, "-c", PADDLE_2_PROGRAM, str(tmp_path)]
    subprocess.run(script, env=clean_environment(), check=True, capture_output=True, timeout=120)
    assert (tmp_path / "inference.pdmodel").is_file() and not (tmp_path / "inference.json").exists()
    batch = images(3, 4, 4)
    expected = batch.reshape(3, -1) @ np.load(tmp_path / "weight.npy")
    for path in (tmp_path, tmp_path / "inference.pdmodel", tmp_path / "inference"):
        assert predictor.is_export(path)
        np.testing.assert_allclose(predictor.load_predictor(path).run(batch), expected, atol=1e-5)


def test_what_is_no_export_is_none(model, tmp_path, run_directory):
    (tmp_path / "config.json").write_text("{}")
    for path in (model, run_directory, tmp_path, tmp_path / "config.json", tmp_path / "absent"):
        assert not predictor.is_export(path)


@pytest.mark.parametrize("format", ["paddle", "onnx"])
def test_damaged_exports_are_reported(model, tmp_path, format):
    output = tmp_path / "out"
    exported(model, output, format=format)
    victims = ["inference.json", "inference.pdiparams"] if format == "paddle" else ["model.onnx"]
    for name in [*victims, "preprocess.json", "export.json"]:
        whole = (output / name).read_bytes()
        (output / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(CheckpointError, match=re.escape(name.replace("pdiparams", "json"))):
            predictor.load_predictor(output)
        (output / name).write_bytes(whole)
    (output / "preprocess.json").write_text('{"colour": "sepia"}')
    with pytest.raises(CheckpointError, match=r"preprocess\.json: damaged"):
        predictor.load_predictor(output)


def test_an_export_is_asked_only_for_what_it_has(model, tmp_path):
    exported(model, tmp_path / "fixed", format="onnx")
    exported(model, tmp_path / "free", format="onnx", dynamic=True)
    with pytest.raises(CheckpointError, match="--resolution 48"):
        predictor.load_predictor(tmp_path / "fixed", img_size=48)
    with pytest.raises(CheckpointError, match="one set of weights"):
        predictor.load_predictor(tmp_path / "fixed", weights="ema")
    wider = predictor.load_predictor(tmp_path / "free", img_size=48)
    assert (
        wider.size == (48, 48) and wider.card.preprocess == predictor.load_predictor(model, img_size=48).card.preprocess
    )
    with pytest.raises(DataError, match=r"takes images \[batch, 3, height, width\]"):
        wider.run(images(1, channels=1))
    with pytest.raises(DataError, match="does not run on images"):
        predictor.load_predictor(tmp_path / "fixed").run(images(1, 40, 40))


def test_an_export_without_its_papers_does_not_guess(run_directory, process_state):
    """Of an ONNX file alone its size is known; how pictures enter, a recipe must say."""
    assert main(["export", "--weights", str(run_directory), "--format", "onnx", "--output", "out"]) == 0
    whole = predictor.load_predictor("out")
    Path("out/model.onnx").rename("alone.onnx")
    alone = predictor.load_predictor("alone.onnx")
    assert (alone.size, alone.channels, alone.batch, alone.card.preprocess) == ((8, 8), 1, None, None)
    picture = np.arange(64, dtype="uint8").reshape(8, 8, 1)
    with pytest.raises(ConfigError, match="-c RECIPE"):
        alone.logits([picture])
    config = load_recipe(str(write_config(Path("run.yaml"), tiny_digits())))
    completed = predictor.load_predictor("alone.onnx", config=config)
    assert completed.card.preprocess == Preprocess(mean=(0.5,), std=(0.5,))
    np.testing.assert_array_equal(completed.logits([picture]), whole.logits([picture]))


def test_a_device_that_onnxruntime_lacks_is_reported(model, tmp_path):
    exported(model, tmp_path / "out", format="onnx")
    for device in ("xpu", "npu:1"):
        with pytest.raises(DeviceError, match=f"no {device[:3]}"):
            predictor.load_predictor(tmp_path / "out", device=device)


@pytest.mark.parametrize("kind", ["checkpoint", "export"])
def test_a_predictor_runs_on_the_device_asked_for(model, tmp_path, monkeypatch, kind):
    """Whatever Paddle's device is meanwhile, which stays what it was."""
    path, chosen, used = model, ["gpu:0"], []
    if kind == "export":
        exported(model, path := tmp_path / "out", format="paddle")
    with pytest.raises(DeviceError, match="'xpu', but the installed paddlepaddle"):
        predictor.load_predictor(path, device="xpu")
    monkeypatch.setattr(paddle, "set_device", chosen.append)
    monkeypatch.setattr(paddle, "get_device", lambda: chosen[-1])
    forward, create = VisionTransformer.forward, inference.create_predictor
    monkeypatch.setattr(VisionTransformer, "forward", lambda self, x: used.append(chosen[-1]) or forward(self, x))
    monkeypatch.setattr(inference, "create_predictor", lambda config: used.append(chosen[-1]) or create(config))
    model = predictor.load_predictor(path, device="cpu")
    assert chosen.pop() == "gpu:0"
    chosen.append("gpu:1")
    assert model.run(images(1)).shape == (1, 10)
    assert used == ["cpu"] and chosen[-1] == "gpu:1"


@pytest.mark.slow
def test_neither_export_nor_prediction_imports_the_trainer(model, process_state):
    """And prediction by ONNX no Paddle."""
    Image.fromarray(np.full([40, 40, 3], 99, "uint8")).save("picture.png")
    code = (
        "import sys; from plsc.cli import main; assert main(sys.argv[1:]) == 0; "
        "print([name for name in ('paddle', 'plsc.engine.trainer') if name in sys.modules])"
    )
    loaded = []
    for arguments in (
        ["export", "--weights", str(model), "--format", "onnx", "--output", "out"],
        ["predict", "--weights", str(model), "picture.png"],
        ["predict", "--weights", "out", "picture.png"],
    ):
        script = [sys.executable, "-c", code, *arguments]
        environment = clean_environment(PYTHONPATH=str(CHECKOUT))
        done = subprocess.run(script, env=environment, capture_output=True, text=True, check=True, timeout=120)
        loaded.append(done.stdout.splitlines()[-1])
    assert loaded == ["['paddle']", "['paddle']", "[]"]


# -- the guide ----------------------------------------------------------------------------


def guide_files() -> dict[str, str]:
    """Name → text of each Python file in docs/deployment.md."""
    text = (CHECKOUT / "docs" / "deployment.md").read_text(encoding="utf-8")
    return dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", text, flags=re.DOTALL))


@pytest.fixture
def guide(tmp_path):
    """The guide's files in a folder, beside a picture and both exports of a model with class names."""
    for name, text in guide_files().items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3)).astype("uint8")
    Image.fromarray(pixels).resize((320, 240)).save(tmp_path / "photo.png")
    path = write_model(tmp_path / "model.safetensors", class_names=[f"kind {i}" for i in range(10)])
    for format in ("paddle", "onnx"):
        exported(path, tmp_path / format, format=format)
    return tmp_path


def expected_answer(folder: Path) -> list[tuple[str, float]]:
    model = predictor.load_predictor(folder / "model.safetensors")
    shares = predictor.probabilities(model.logits(folder / "photo.png"), "softmax")[0]
    return [(model.card.class_names[i], shares[i]) for i in np.argsort(-shares)[:5]]


@pytest.mark.slow
@pytest.mark.parametrize(("script", "format"), [("with_paddle.py", "paddle"), ("with_onnxruntime.py", "onnx")])
def test_the_guides_programs_name_the_same_classes(guide, script, format):
    command = [sys.executable, script, format, "photo.png"]
    done = subprocess.run(command, cwd=guide, env=clean_environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    matches = re.findall(r"\('(kind \d)', ([\d.]+)\)", done.stdout)
    expected = expected_answer(guide)
    assert [name for name, _ in matches] == [name for name, _ in expected]
    np.testing.assert_allclose([float(share) for _, share in matches], [share for _, share in expected], atol=1e-4)


@pytest.mark.slow
def test_the_guides_service_answers(guide):
    import socket

    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "serve.py", "onnx", str(port)]
    server = subprocess.Popen(command, cwd=guide, env=clean_environment(), stderr=subprocess.DEVNULL)
    try:
        answer = post(port, (guide / "photo.png").read_bytes())
        assert answer[0] == 200 and [(entry["name"]) for entry in answer[1]] == [n for n, _ in expected_answer(guide)]
        assert post(port, b"no picture")[0] == 400
    finally:
        server.kill()
        server.wait()


def post(port: int, data: bytes):
    """(status, answer) of a service that may still be starting."""
    import time

    for _ in range(100):
        try:
            with urllib.request.urlopen(f"http://localhost:{port}/", data=data, timeout=30) as response:
                return response.status, json.loads(response.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())
        except urllib.error.URLError:
            time.sleep(0.1)
    raise AssertionError("the service does not answer")


@pytest.mark.parametrize(
    "preprocess",
    [
        Preprocess(resize=40, crop=(32, 32)),
        Preprocess(resize=(30, 50), interpolation="bilinear", backend="cv2", rgb=False),
        Preprocess(resize=60, keep_above=20, crop=(24, 28), mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)),
        Preprocess(crop=(16, 16), scale=1.0, mean=(120.0,) * 3, std=(60.0,) * 3),
    ],
)
def test_the_guides_preparation_is_plscs(preprocess):
    import io

    pixels = np.random.default_rng(1).integers(0, 256, (45, 70, 3)).astype("uint8")
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="png")
    names = {}
    exec(guide_files()["prepare.py"], names)  # the guide's own code is what is tested
    prepared = names["prepare"](buffer.getvalue(), json.loads(json.dumps(preprocess.to_dict())))
    expected = predictor.normalised(preprocess(buffer.getvalue())[np.newaxis], preprocess)
    np.testing.assert_allclose(prepared, expected, rtol=1e-5, atol=1e-5)
