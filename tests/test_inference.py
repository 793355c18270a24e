"""Evaluation and prediction in Paddle Inference's graph: the same figures as in dygraph, and what stays there."""

import copy
import fcntl
import json
import logging
import math
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import paddle
import pytest
from paddle import nn

import plsc
from plsc import compat, files
from plsc.engine import blocks
from plsc.errors import DeviceError
from plsc.inference import Inference, rows_of
from plsc.models import VisionTransformer, ViTSpec
from plsc.predictor import of_network
from tests.helpers import log_texts, tiny_digits
from tests.helpers import metrics as read_metrics
from tests.helpers import plsc as command

pytestmark = pytest.mark.skipif(compat.IS_PADDLE_2, reason="graphs are used with Paddle 3 only")

MODELS = {
    "plain": dict(),
    "hybrid": dict(resnet_layers=(1, 1), patch_size=1),
    "registers": dict(reg_tokens=2, layer_scale=0.5, act="gelu_tanh"),
    "rotary": dict(rope="axial", pos_embed="none"),
    "relative": dict(rel_pos_bias=True, pos_embed="none"),
    "pooled": dict(pool="map", class_token=False),
    "distilled": dict(distillation="heads"),
    "no biases of keys": dict(k_bias=False, qk_norm="layernorm"),
    "no biases": dict(qkv_bias=False, attn_norm=True),
}


def model(seed: int = 0, **fields) -> VisionTransformer:
    """A small ViT of 10 classes for pictures of 32 pixels, with weights that differ from their first ones."""
    spec = dict(img_size=32, patch_size=8, class_num=10, embed_dim=16, depth=2, num_heads=2, mlp_ratio=2.0)
    network = VisionTransformer(ViTSpec(**{**spec, **fields}))
    shake(network, seed)
    network.eval()
    return network


@paddle.no_grad()
def shake(network: nn.Layer, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for parameter in network.parameters():
        parameter.set_value(rng.normal(parameter.numpy(), 0.2).astype("float32"))


def images(count: int, side: int = 32, seed: int = 1) -> paddle.Tensor:
    return paddle.to_tensor(np.random.default_rng(seed).normal(size=(count, 3, side, side)).astype("float32"))


def state(network: nn.Layer) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in network.state_dict().items()}


@paddle.no_grad()
def both(network, batch: paddle.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Outputs of dygraph and of the graph."""
    run = Inference("graph")
    expected = network(batch).numpy()
    run.convert(network, batch)
    calls = []
    plain = lambda images: calls.append(images) or network(images)  # noqa: E731
    compared = run(plain, batch).numpy()
    computed = run(plain, batch.clone()).numpy()
    np.testing.assert_array_equal(compared, computed)
    run.close()
    assert not calls, "the graph was not used"
    return expected, computed


def close_to(computed: np.ndarray, expected: np.ndarray) -> None:
    assert np.abs(computed - expected).max() <= 1e-5 * np.abs(expected).max()


# -- the same outputs ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", MODELS)
def test_a_graph_computes_what_the_network_does(kind):
    """Of every kind of model, which itself stays as it was."""
    network = model(**MODELS[kind])
    before, batch = state(network), images(13)
    expected, computed = both(network, batch)
    close_to(computed, expected)
    assert state(network) == before
    np.testing.assert_array_equal(network(batch).numpy(), expected)


def test_recomputed_and_compiled_blocks():
    """What training puts around a block's forward is left out of the graph, and stays in the network."""
    network = model(depth=1)
    expected = network(images(6)).numpy()
    blocks.recompute_blocks(network, interval=1, names=(), on_cpu=True)
    forwards = [block.forward for block in network.blocks]
    close_to(both(network, images(6))[1], expected)
    assert [block.forward for block in network.blocks] == forwards
    network = model(depth=1)
    expected = network(images(6)).numpy()
    blocks.compile_blocks(network)
    close_to(both(network, images(6))[1], expected)


def test_what_was_compared_is_not_computed_again_but_where_it_changed():
    network, run, batch = model(), Inference("graph"), images(6)
    with paddle.no_grad():
        run.convert(network, batch)
        batch.scale_(2.0)
        close_to(run(network, batch).numpy(), network(batch).numpy())
    run.close()


def test_new_weights_need_a_new_graph():
    """A graph holds the weights that it was made of; the next one has the next ones."""
    network, run, batch = model(), Inference("graph"), images(6)
    with paddle.no_grad():
        for seed in (1, 2):
            shake(network, seed)
            run.convert(network, batch)
            close_to(run(network, batch).numpy(), network(batch).numpy())
            run.close()


@pytest.mark.parametrize("count", [1, 5, 50])
def test_batches_of_any_size_and_other_pictures(count):
    """Batches are cut and filled up; a smaller one, or of other pictures, goes through the network."""
    network, run = model(), Inference("graph")
    with paddle.no_grad():
        run.convert(network, images(count))
        for other in {count, count + 3, 2 * count, 1}:
            batch = images(other, seed=other)
            close_to(run(network, batch).numpy(), network(batch).numpy())
        calls: list = []
        larger = images(count, side=40)
        assert run(lambda batch: calls.append(batch) or batch, larger) is larger and len(calls) == 1
    run.close()


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_rows_leave_little_that_is_computed_for_nothing(threads):
    for batch in range(1, 260):
        rows = rows_of(batch, threads)
        pieces = math.ceil(batch / rows)
        assert 1 <= rows <= 32 * threads
        assert pieces == math.ceil(batch / (32 * threads)) and pieces * rows < batch + pieces
    assert rows_of(50, 2) == 50 and rows_of(100, 2) == 50 and rows_of(64, 2) == 64 and rows_of(1, 2) == 1


# -- where there is no graph --------------------------------------------------------------


class Odd(nn.Layer):
    """A network that cannot be a graph, in one way or another."""

    def __init__(self, way: str):
        super().__init__()
        self.linear, self.way = nn.Linear(3, 4), way

    def forward(self, x):
        x = self.linear(x.mean([2, 3]))
        if self.way == "looks at values" and float(x.max()) > 1e9:
            return -x
        if self.way == "refuses" and not paddle.in_dynamic_mode():
            raise TypeError("no program can be made of this")
        if self.way == "mixes pictures":
            return x - x.mean(0)
        if self.way == "draws":
            return x + paddle.rand(x.shape)
        if self.way == "returns two":
            return x, x
        return x


@pytest.mark.parametrize("way", ["looks at values", "mixes pictures", "draws", "returns two"])
def test_a_network_that_cannot_be_a_graph_stays_in_dygraph(way):
    network, run, batch = Odd(way), Inference("auto"), images(12)
    network.eval()
    with paddle.no_grad(), log_texts(logging.INFO) as lines:
        run.convert(network, batch)
        assert not run.undecided, "it is not tried again"
        outputs = run(network, batch)
    assert isinstance(outputs, tuple) or outputs.shape == [12, 4]
    [line] = lines
    differs = way in ("mixes pictures", "draws")
    cause = (
        "the model's graph computes something else: its outputs differ by" if differs else "the model makes no graph"
    )
    assert line.startswith(f"evaluation stays in dygraph: {cause}") and "later" not in line
    with pytest.raises(DeviceError, match=rf"{cause}.*Global\.inference: auto goes on without it"):
        Inference("graph").convert(Odd(way), batch)


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), MemoryError("no memory")], ids=["disk", "memory"]
)
def test_a_machine_without_room_for_a_graph_is_asked_again(monkeypatch, error):
    """In auto, each time after twice as much work; a graph that was asked for is an error at once."""
    network, batch, run, save = model(), images(8), Inference(use="prediction"), paddle.jit.save
    tries = []

    def full(*arguments, **options):
        tries.append(run._spent)
        raise error

    monkeypatch.setattr(paddle.jit, "save", full)
    run._cost = 1e-9
    with paddle.no_grad(), log_texts(logging.INFO) as lines:
        run.answer(network, batch)
        assert run.undecided and len(tries) == 1
        run._cost, run._spent = 0.4 * 3e6, 5e6  # a graph pays after 3e6 seconds, the second attempt after 6e6
        run.answer(network, batch)
        assert len(tries) == 1
        run._spent = 7e6
        run.answer(network, batch)
        assert len(tries) == 2
        with pytest.raises(DeviceError, match="evaluation stays in dygraph: no graph can be made now: "):
            Inference("graph").convert(network, batch)
        monkeypatch.setattr(paddle.jit, "save", save)
        run._spent = 13e6
        run.answer(network, batch)
        assert not run.undecided
        run.close()
    reason = f"{type(error).__name__}: {error}"
    text = f"prediction stays in dygraph: no graph can be made now: {reason}; it is tried again later"
    assert lines == [text, text]


def test_a_model_that_is_fine_becomes_one():
    network = Odd("none")
    network.eval()
    with paddle.no_grad(), log_texts(logging.INFO) as lines:
        expected, computed = both(network, images(12))
    close_to(computed, expected)
    assert len(lines) == 1 and "was made in" in lines[0]


def test_what_pays():
    """By counts: the same in every run, so that a continued one computes the same bits."""
    network = VisionTransformer(ViTSpec(embed_dim=192, num_heads=3, depth=1, class_num=10))  # 0.3 GFLOPs a picture
    assert not Inference().pays(network, 100)  # saves 0.1 s
    assert Inference().pays(network, 1000)  # saves 1 s
    assert Inference("graph").pays(network, 1)
    assert not Inference("dygraph").pays(network, 10**9)
    assert not Inference().pays(nn.Linear(2, 2), 10**9), "operations that nobody has counted"


def test_work_of_unknown_length():
    """Dygraph, until it has taken so long that a graph would have paid; then the main thread makes one."""
    network, batch = model(), images(8)
    run = Inference(use="prediction")
    with paddle.no_grad(), ThreadPoolExecutor(3) as threads:
        expected = network(batch).numpy()
        run._cost = 1e9
        run.answer(network, batch)
        assert run.undecided and 0.0 < run._spent < 60.0
        run._cost = 1e-9
        work = paddle.no_grad()(lambda _: run.answer(network, batch).numpy())
        answers = list(threads.map(work, range(6)))
        assert run.undecided, "recording in one thread stops the dygraph of others"
        answers.append(work(None))
        assert not run.undecided
        answers += threads.map(work, range(6))
        for answer in answers:
            close_to(answer, expected)
        close_to(run.answer(lambda images: pytest.fail("dygraph"), batch).numpy(), expected)
        run.close()


def test_threads_wait_for_a_graph_that_is_asked_for():
    network, batch = model(), images(8)
    run = Inference("graph", use="prediction")
    with paddle.no_grad(), ThreadPoolExecutor(3) as threads:
        expected = network(batch).numpy()
        for answer in threads.map(paddle.no_grad()(lambda _: run.answer(network, batch).numpy()), range(12)):
            close_to(answer, expected)
        run.close()


def test_a_predictor_by_graph(runs):
    """The same logits in batches of any size, of the averaged weights too; a device that is not the CPU has none."""
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (8, 8, 1), dtype=np.uint8) for _ in range(21)]
    for part in ("model", "ema"):
        graph, dygraph = (
            plsc.load_predictor(runs["graph"], weights=part, inference=mode) for mode in ("graph", "dygraph")
        )
        for batch in (8, 8, 1, 5, 21):
            close_to(graph.logits(pictures, batch_size=batch), dygraph.logits(pictures, batch_size=batch))


def test_a_predictor_of_a_model_that_cannot_be_one(runs):
    loaded = plsc.load_model(runs["graph"])
    network = loaded.network
    plain = network.forward_head
    network.forward_head = lambda x, pre_logits=False: plain(x) * (1.0 + float(x.mean()) * 0.0)
    batch = np.zeros((4, 1, 8, 8), "float32")
    with pytest.raises(DeviceError, match="prediction stays in dygraph"):
        of_network(loaded, "graph").run(batch)
    assert of_network(loaded, "auto").run(batch).shape == (4, 10)


@pytest.mark.parametrize("recorded", ["graph", "compiled block"])
def test_a_network_that_cannot_be_recorded_leaves_nothing_in_paddle(recorded):
    """Its parameters would be taken over by a later graph whose program has the same address, after they were freed."""
    from paddle.jit.dy2static import parameter_recorder as kept

    odd = Odd("refuses")
    if recorded == "graph":
        Inference().convert(odd, images(6))
    else:
        blocks.compile_blocks(odd)
        with pytest.raises(TypeError, match="no program can be made"):
            odd(images(6))
    recorder = kept._global_parameter_recorder
    assert not recorder.params_dict and not recorder.tensor2value and not kept._global_inplace_map.params_dict


def test_a_compiled_model_is_copied_and_saved_as_any_other(tmp_path):
    model = plsc.create_model("ViT_tiny_patch16_224", depth=1, img_size=32, class_num=3)
    model.eval()
    pictures = paddle.ones([2, 3, 32, 32])
    blocks.compile_blocks(model)
    before = model.forward_features(pictures).numpy()
    copied = copy.deepcopy(model)
    copied.blocks[0].mlp.fc2.bias.set_value(paddle.linspace(0.0, 9.0, 192))
    assert np.abs(copied.forward_features(pictures).numpy() - before).max() > 0.1
    np.testing.assert_array_equal(model.forward_features(pictures).numpy(), before)
    paddle.jit.save(model, str(tmp_path / "model"), input_spec=[paddle.static.InputSpec([None, 3, 32, 32], "float32")])
    saved = paddle.jit.load(str(tmp_path / "model"))
    np.testing.assert_allclose(saved(pictures).numpy(), model(pictures).numpy(), atol=1e-6)


# -- its files ----------------------------------------------------------------------------


def test_no_file_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    both(model(), images(6))
    Inference().convert(Odd("looks at values"), images(6))
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed(tmp_path, monkeypatch):
    """Unless a process still works in it, or has just begun."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    program = (
        f"import os, tempfile; tempfile.tempdir = {str(tmp_path)!r}\n"
        "from plsc import files\n"
        "with files.temporary_folder('plsc-graph') as folder:\n"
        "    (folder / 'weights').write_text('x'); os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=Path(plsc.__file__).parent.parent, check=False)
    [left] = tmp_path.iterdir()
    young, at_work = (Path(tempfile.mkdtemp(prefix=f"plsc-graph-{os.getuid()}-")) for _ in range(2))
    for folder in (left, at_work):
        os.utime(folder, (time.time() - 60,) * 2)
    with open(at_work / "lock", "w") as lock, files.temporary_folder("plsc-graph") as mine:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.utime(at_work, (time.time() - 60,) * 2)
        with files.temporary_folder("plsc-graph"):
            assert young.is_dir() and at_work.is_dir() and mine.is_dir()
    assert not left.exists() and not mine.exists()


# -- runs ---------------------------------------------------------------------------------


def tree(mode: str) -> dict:
    """Two evaluations of 360 pictures in batches of 50, of the weights and of their average."""
    tree = copy.deepcopy(tiny_digits())
    tree["Global"] |= {"inference": mode, "eval_during_train": True, "eval_unit": "step", "eval_interval": 5}
    tree["EMA"] = {"decay": 0.9, "ema_eval": True}
    tree["DataLoader"]["Eval"]["sampler"]["batch_size"] = 50
    tree["Loss"]["Train"] = [{"BCELoss": {}}]
    tree["Metric"]["Eval"] += [{"mAP": {}}]
    return tree


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """The same run, evaluated by graph and in dygraph."""
    folder = tmp_path_factory.mktemp("runs")
    for mode in ("graph", "dygraph"):
        (folder / f"{mode}.yaml").write_text(json.dumps(tree(mode)))
        command("train", "-c", f"{mode}.yaml", "-o", f"Global.output_dir={mode}", cwd=folder)
    return {mode: folder / mode for mode in ("graph", "dygraph")}


def same_figures(one: dict, other: dict) -> None:
    """Counts are equal, means of float32 numbers to 1e-5."""
    exact = [name for name in one if name.startswith("top") or name in ("samples", "step", "kind", "weights")]
    assert {name: one[name] for name in exact} == {name: other[name] for name in exact}
    assert one["loss"] == pytest.approx(other["loss"], rel=1e-5) and one["mAP"] == pytest.approx(other["mAP"], rel=1e-4)


def test_figures_of_a_run_and_its_weights(runs):
    """Evaluations during training give the same figures, and training goes on as if there were none."""
    graph, dygraph = (read_metrics(runs[mode], "eval") for mode in ("graph", "dygraph"))
    assert len(graph) == len(dygraph) == 4 and graph[0]["samples"] == 360
    for one, other in zip(graph, dygraph, strict=True):
        same_figures(one, other)
    for file in ("model", "optimizer", "ema"):
        path = Path("checkpoints", "step-00000010", f"{file}.safetensors")
        assert (runs["graph"] / path).read_bytes() == (runs["dygraph"] / path).read_bytes()
    log = (runs["graph"] / "train.log").read_text()
    assert log.count("evaluation runs in Paddle Inference's graph") == 1, "said once, for four evaluations"
    assert "Paddle Inference" not in (runs["dygraph"] / "train.log").read_text()


@pytest.mark.parametrize("options", [[], ["--ema"]])
def test_eval(runs, options, tmp_path):
    computed = []
    for mode in ("graph", "dygraph"):
        output = tmp_path / f"{mode}.json"
        chosen = ["-o", f"Global.inference={mode}"]
        latest = runs["graph"] / "checkpoints" / "latest"
        done = command("eval", "--weights", latest, *options, *chosen, "--output", output)
        assert ("Paddle Inference's graph" in done.stdout + done.stderr) == (mode == "graph")
        computed.append(json.loads(output.read_text()))
    same_figures(*computed)
    raw, ema = read_metrics(runs["dygraph"], "eval")[-2:]
    assert computed[0]["top1"] == (ema if options else raw)["top1"]


@pytest.mark.long
@pytest.mark.distributed
def test_two_processes(runs, tmp_path):
    """Each makes a graph of its own; the figures are those of one process."""
    output = tmp_path / "two.json"
    words = ["--weights", runs["graph"], "--output", output, "-o", "Global.inference=graph"]
    done = command("eval", *words, processes=2, cwd=tmp_path)
    assert "Paddle Inference's graph" in done.stdout + done.stderr + "".join(
        path.read_text() for path in (tmp_path / "launch_log").glob("workerlog.*")
    )
    alone = tmp_path / "one.json"
    command("eval", "--weights", runs["graph"], "--output", alone, "-o", "Global.inference=dygraph")
    same_figures(json.loads(output.read_text()), json.loads(alone.read_text()))
