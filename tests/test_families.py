"""Models that are not Vision Transformers: a family of one's own with a table of names, and models without family."""

import dataclasses
import re
from typing import Annotated

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle import nn
from pydantic import Field
from safetensors.numpy import load_file, save_file

from plsc import export as exporting
from plsc import loading, predictor
from plsc.cli.main import main
from plsc.data.preprocess import Preprocess
from plsc.errors import CheckpointError, ConfigError, DeviceError
from plsc.model_card import ModelCard
from plsc.models.base import AttentionMaps, Deployable, HasBlocks, Model
from plsc.registry import MODELS
from plsc.weights import Family, Source, families, formats, read, register_family, write
from plsc.weights.layouts import Lack, Layout, Rule, Turn

PREPROCESS = Preprocess(resize=18, crop=(16, 16), mean=(0.4,) * 3, std=(0.3,) * 3)


@dataclasses.dataclass(frozen=True)
class NetSpec:
    """Of a small convolutional network."""

    class_num: Annotated[int, Field(ge=0)] = 5
    width: Annotated[int, Field(gt=0)] = 8
    slope: float = 0.1
    groups: int = 0


class Net(nn.Layer):
    """Convolution, norm, a ReLU that leaks, mean, two linear layers side by side, classifier `fc`. It has no blocks."""

    def __init__(self, spec: NetSpec):
        super().__init__()
        width = spec.width
        self.conv = nn.Conv2D(3, width, 3, padding=1)
        self.norm = nn.GroupNorm(spec.groups, width, epsilon=1e-3) if spec.groups else nn.BatchNorm2D(width)
        self.pair = nn.Linear(width, 2 * width)
        self.spec = spec
        self.reset_classifier(spec.class_num)

    def forward(self, x):
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x):
        x = self.norm(self.conv(x))
        return F.relu(x) - self.spec.slope * F.relu(-x)

    def forward_head(self, x, pre_logits: bool = False):
        x = F.tanh(self.pair(x.mean(axis=[2, 3])))
        return x if pre_logits else self.fc(x)

    def reset_classifier(self, class_num: int) -> None:
        self.spec = dataclasses.replace(self.spec, class_num=class_num)
        self.fc = nn.Linear(2 * self.spec.width, class_num) if class_num else nn.Identity()


def infer(shapes, stated):
    classes = shapes["fc.weight"][1] if "fc.weight" in shapes else 0
    return {"class_num": classes, "width": shapes["conv.weight"][0], **stated}


HWIO = Turn(lambda t, _: t.transposed(3, 2, 0, 1), lambda t, _: t.transposed(2, 3, 1, 0), dimensions=4)
HUB = Layout(
    name="nethub",
    title="the net hub",
    probe="stem/kernel",
    container="npz",
    lacks=(Lack("groups", "GroupNorm", (0,)),),
    rules=(
        Rule("conv.weight", "stem/kernel", HWIO),
        Rule("conv.bias", "stem/bias"),
        Rule("norm.weight", "bn/<gamma|scale>"),
        Rule("norm.bias", "bn/beta"),
        Rule("norm._mean", "bn/mean"),
        Rule("norm._variance", "bn/variance"),
        Rule("pair.{p}", ("left/{p}", "right/{p}")),
        Rule("fc.{p}", "classifier/{p}"),
    ),
)
FAMILY = Family(
    model="TestNet",
    models=frozenset(["TestNet"]),
    spec=NetSpec,
    layouts=(HUB,),
    names=r"(conv|norm|pair|fc)\..+",
    infer=infer,
    unseen=("slope",),
    dimensions=((r"conv\.weight", 4), (r"(pair|fc)\.weight", 2)),
    head=("fc.",),
)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """TestNet and its family, and LoneNet, which has no family; gone after the test."""
    families.families()
    monkeypatch.setattr(families, "_families", list(families._families))
    for registry in ("_entries", "_aliases"):
        monkeypatch.setattr(MODELS, registry, dict(getattr(MODELS, registry)))

    @MODELS.register("TestNet")
    def build(class_num: int = 5, width: int = 8, slope: float = 0.1, groups: int = 0):
        return Net(NetSpec(class_num, width, slope, groups))

    MODELS.register("LoneNet")(build)
    register_family(FAMILY)


def drawn(name="TestNet", **fields) -> Net:
    """A network of which every parameter and buffer is drawn."""
    network = loading.create_model(name, **fields)
    rng = np.random.default_rng(0)
    for tensor in network.state_dict().values():
        tensor.set_value(rng.uniform(0.1, 1.0, tensor.shape).astype("float32"))
    network.eval()
    return network


def source_of(network: Net, model="TestNet", **card) -> Source:
    arrays = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    stated = dict(model=model, spec=dataclasses.asdict(network.spec), preprocess=PREPROCESS, activation="softmax")
    return Source.of_arrays("made", arrays, ModelCard(**{**stated, **card}))


def images(count=2, size=16) -> np.ndarray:
    return np.random.default_rng(1).standard_normal([count, 3, size, size]).astype("float32")


@paddle.no_grad()
def logits(network) -> np.ndarray:
    return network(paddle.to_tensor(images())).numpy()


# -- the family's own table ---------------------------------------------------------------


def test_a_family_reads_and_writes_by_one_table(tmp_path):
    """Names, orientation and parts on disk are the hub's; they come back bit for bit, and rebuild the network."""
    network = drawn()
    assert "nethub" in formats()
    assert write(source_of(network), "nethub", tmp_path / "w.npz") == [tmp_path / "w.npz"]
    with np.load(tmp_path / "w.npz") as file:
        theirs = dict(file)
    del theirs["plsc_card"]
    state = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    assert set(theirs) == {
        "stem/kernel", "stem/bias", "bn/gamma", "bn/beta", "bn/mean", "bn/variance", "left/weight", "right/weight",
        "left/bias", "right/bias", "classifier/weight", "classifier/bias",
    }  # fmt: skip
    np.testing.assert_array_equal(theirs["stem/kernel"], state["conv.weight"].transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(theirs["right/weight"], state["pair.weight"][:, 8:].T)
    np.testing.assert_array_equal(theirs["left/bias"], state["pair.bias"][:8])
    np.testing.assert_array_equal(theirs["classifier/weight"], state["fc.weight"].T)
    back = read(tmp_path / "w.npz")
    assert (back.layout, back.unknown, back.card.model) == ("nethub", {}, "TestNet")
    assert back.card.spec == {"class_num": 5, "width": 8, "slope": 0.1, "groups": 0}, "the card goes along"
    assert set(back.tensors) == set(state)
    assert all(np.array_equal(back.read(name), value) for name, value in state.items())
    np.testing.assert_array_equal(logits(loading.load_model(tmp_path / "w.npz").network), logits(network))


def test_other_spellings_are_read(tmp_path):
    write(source_of(drawn()), "nethub", tmp_path / "w.npz")
    with np.load(tmp_path / "w.npz") as file:
        theirs = {name.replace("gamma", "scale"): array for name, array in file.items() if name != "plsc_card"}
    save_file({f"module.{name}": np.ascontiguousarray(array) for name, array in theirs.items()}, tmp_path / "w.bin")
    np.testing.assert_array_equal(logits(loading.load_model(tmp_path / "w.bin").network), logits(drawn()))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda a: a.pop("left/weight"), r"pair\.weight has 1 of 2 parts"),
        (lambda a: a.update({"stem/kernel": a["stem/kernel"][0]}), "stem/kernel has shape .* 4 dimensions"),
        (lambda a: a.update({"left/weight": a["left/weight"][:, :3]}), r"parts of pair\.weight do not fit"),
        (lambda a: a.update({"bn/scale": a["bn/gamma"]}), "norm.weight"),
        (lambda a: a.update({"classifier/weight": a["classifier/weight"][0]}), r"fc\.weight has shape \[16\]"),
    ],
)
def test_arrays_that_do_not_go_together_are_refused(tmp_path, spoil, reason):
    write(source_of(drawn()), "nethub", tmp_path / "w.npz")
    with np.load(tmp_path / "w.npz") as file:
        arrays = dict(file)
    spoil(arrays)
    np.savez(tmp_path / "w.npz", **arrays)
    with pytest.raises(CheckpointError, match=rf"w\.npz.*{reason}"):
        read(tmp_path / "w.npz")


def test_what_a_layout_lacks_and_other_families_formats_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"no place for GroupNorm \(the model's groups is 4\)"):
        write(source_of(drawn(groups=4)), "nethub", tmp_path / "w.npz")
    with pytest.raises(
        CheckpointError, match="TestNet cannot be written as timm, only as safetensors, pdparams, nethub"
    ):
        write(source_of(drawn()), "timm", tmp_path / "w")
    assert list(tmp_path.iterdir()) == []


def test_the_familys_head_is_taken_whole_or_begins_anew(tmp_path):
    write(source_of(drawn()), "nethub", tmp_path / "w.npz")
    network = loading.create_model("TestNet", class_num=3, pretrained=tmp_path / "w.npz")
    assert list(network.fc.weight.shape) == [16, 3]
    np.testing.assert_array_equal(network.pair.weight.numpy(), drawn().pair.weight.numpy())
    report = loading.load_pretrained(loading.create_model("TestNet"), tmp_path / "w.npz", reset_head=True)
    assert set(report.initialised) == {"fc.weight", "fc.bias"}
    write(source_of(drawn()), "nethub", tmp_path / "bare.npz", backbone=True)
    assert read(tmp_path / "bare.npz").card.spec["class_num"] == 0


def test_what_no_shape_shows_is_compared(tmp_path):
    write(source_of(drawn(slope=0.5)), "safetensors", tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=r"trained with slope 0\.5, the model has 0\.1; .* -o Model\.slope=0\.5"):
        loading.load_pretrained(drawn(), tmp_path / "w.safetensors", strict=True)


@pytest.mark.parametrize("spec", [{"width": "8"}, {"width": -1}, {"class_num": 2.5}, {"slope": [1]}])
def test_a_spec_with_values_of_other_types_is_refused(tmp_path, spec):
    [(name, value)] = spec.items()
    card = source_of(drawn()).card
    card = dataclasses.replace(card, spec={**card.spec, **spec})
    arrays = {"conv.weight": np.ones([8, 3, 3, 3], "float32")}
    save_file(arrays, tmp_path / "w.safetensors", {"format": "plsc", **card.to_metadata()})
    with pytest.raises(
        CheckpointError, match=rf"w\.safetensors: damaged: the spec's {name} is {re.escape(repr(value))}"
    ):
        read(tmp_path / "w.safetensors")


def test_two_families_cannot_share_a_model():
    with pytest.raises(ConfigError, match="TestNet's has TestNet already"):
        register_family(dataclasses.replace(FAMILY, model="Other"))
    register_family(dataclasses.replace(FAMILY, unseen=()))  # made again, as in a notebook's cell
    assert families.family_of("TestNet").unseen == ()


# -- a model without a family -------------------------------------------------------------


def test_a_model_needs_no_family(tmp_path):
    """Written and loaded by its own names, buffers included, in both formats that hold any model."""
    network = drawn("LoneNet", width=4)
    source = source_of(network, "LoneNet")
    write(source, "safetensors", tmp_path / "w.safetensors")
    write(source, "pdparams", tmp_path / "w.pdparams")
    loaded = loading.load_model(tmp_path / "w.safetensors")
    assert loaded.card.preprocess == PREPROCESS and loaded.card.img_size == (16, 16)
    np.testing.assert_array_equal(logits(loaded.network), logits(network))
    assert set(load_file(tmp_path / "w.safetensors")) == set(network.state_dict())
    again = loading.create_model("LoneNet", width=4)
    assert loading.load_pretrained(again, tmp_path / "w.pdparams", strict=True).exact  # by the model's own names
    again.eval()
    np.testing.assert_array_equal(logits(again), logits(network))
    with pytest.raises(CheckpointError, match="no known model"):
        loading.load_pretrained(nn_of_other_names(), tmp_path / "w.pdparams")


def nn_of_other_names():
    network = loading.create_model("LoneNet")
    network.state_dict = lambda: {"other": paddle.zeros([1])}
    return network


def test_a_model_that_is_not_registered_is_reported(tmp_path, capsys):
    write(source_of(drawn(), "Elsewhere"), "safetensors", tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=r"the model Elsewhere, which is not registered; .*--import"):
        loading.load_model(tmp_path / "w.safetensors")
    assert (
        main(["convert", str(tmp_path / "w.safetensors"), "--to", "safetensors", "--output", str(tmp_path / "x")]) == 0
    )
    assert read(tmp_path / "x").card == read(tmp_path / "w.safetensors").card


@pytest.mark.parametrize("format", ["paddle", "onnx"])
@pytest.mark.parametrize("groups", [0, 4])
def test_any_model_is_exported(tmp_path, format, groups):
    """At the size that the preprocessing leaves, checked against the model, and predicted with."""
    network = drawn("LoneNet", groups=groups)
    write(source_of(network, "LoneNet"), "safetensors", tmp_path / "w.safetensors")
    checks = exporting.export(loading.load_model(tmp_path / "w.safetensors"), tmp_path / "out", format=format)
    assert all(check.agrees and (check.height, check.width) == (16, 16) for check in checks)
    model = predictor.load_predictor(tmp_path / "out", device="cpu")
    np.testing.assert_allclose(model.run(images()), logits(network), atol=1e-5)
    assert model.card.model == "LoneNet" and model.size == (16, 16)


@pytest.mark.parametrize("format", ["paddle", "onnx"])
def test_a_model_of_any_size_is_exported_for_any_size(tmp_path, format):
    network = drawn("LoneNet")
    write(source_of(network, "LoneNet", preprocess=Preprocess()), "safetensors", tmp_path / "w.safetensors")
    exporting.export(loading.load_model(tmp_path / "w.safetensors"), tmp_path / "out", format=format)
    model = predictor.load_predictor(tmp_path / "out", device="cpu")
    pictures = [np.random.default_rng(k).integers(0, 256, [12 + k % 2, 20, 3]).astype("uint8") for k in range(5)]
    actual = model.logits(pictures, batch_size=2)
    expected = predictor.of_network(loading.load_model(tmp_path / "w.safetensors")).logits(pictures)
    np.testing.assert_allclose(actual, expected, atol=1e-5)


class LeakyNet(Net):
    """Paddle 3.3's fusion for it ends the process, and paddle2onnx 2.1 loses its slope."""

    def forward_features(self, x):
        return F.leaky_relu(self.norm(self.conv(x)), 0.1)


def test_faults_of_the_runtimes_are_kept_out_or_found(tmp_path):
    MODELS.register("LeakyNet")(lambda class_num=5, width=8, slope=0.1, groups=0: LeakyNet(NetSpec(class_num, width)))
    network = drawn("LeakyNet")
    write(source_of(network, "LeakyNet"), "safetensors", tmp_path / "w.safetensors")
    exporting.export(loading.load_model(tmp_path / "w.safetensors"), tmp_path / "out", format="paddle")
    np.testing.assert_allclose(predictor.load_predictor(tmp_path / "out").run(images()), logits(network), atol=1e-5)
    with pytest.raises(DeviceError, match="does not compute what the model does; nothing is written"):
        exporting.export(loading.load_model(tmp_path / "w.safetensors"), tmp_path / "onnx", format="onnx")
    assert not (tmp_path / "onnx").exists()


def test_several_epsilons_are_not_exported_to_onnx(tmp_path):
    network = drawn("LoneNet", groups=2)
    write(source_of(network, "LoneNet"), "safetensors", tmp_path / "w.safetensors")
    loaded = loading.load_model(tmp_path / "w.safetensors")
    loaded.network.other = nn.GroupNorm(2, 8, epsilon=0.5)
    with pytest.raises(CheckpointError, match="several epsilons"):
        exporting.export(loaded, tmp_path / "out", format="onnx")
    assert not (tmp_path / "out").exists()


def test_abilities_are_distinguished():
    network = drawn()
    assert isinstance(network, Model)
    assert not any(isinstance(network, ability) for ability in (HasBlocks, AttentionMaps, Deployable))


def test_a_layer_that_is_no_model_is_refused(tmp_path):
    @MODELS.register("HalfNet")
    def half(class_num: int = 5):
        return nn.Linear(3, class_num)

    with pytest.raises(ConfigError, match=r"HalfNet .*forward_features"):
        loading.create_model("HalfNet")
