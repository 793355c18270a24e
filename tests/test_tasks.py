"""Tasks of others, and models that are not Vision Transformers: the loop and the evaluator know nothing of either."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import paddle
import pytest
from safetensors.numpy import load_file

import plsc
from plsc import build
from plsc.config import load
from plsc.engine.assembly import assemble
from plsc.engine.distributed import World
from plsc.errors import ConfigError
from plsc.losses import CELoss
from plsc.models import cpu_forms
from plsc.registry import METRICS, MODELS, TASKS
from plsc.targets import Targets
from plsc.tasks import Classification, PreparesBatch, Task, TaskOutput
from tests.helpers import log_texts, metrics, tiny_digits

pytestmark = pytest.mark.usefixtures("process_state")


@dataclass(frozen=True)
class SmallSpec:
    class_num: int


class NormalisedConvNet(paddle.nn.Layer):
    """A convolution with batch normalisation, whose running means are not parameters."""

    def __init__(self, class_num: int = 10):
        super().__init__()
        self.body = paddle.nn.Sequential(paddle.nn.Conv2D(1, 8, 3), paddle.nn.BatchNorm2D(8), paddle.nn.ReLU())
        self.reset_classifier(class_num)

    def reset_classifier(self, class_num: int) -> None:
        self.spec, self.head = SmallSpec(class_num), paddle.nn.Linear(8, class_num)

    def forward_features(self, x):
        return self.body(x)

    def forward_head(self, x, pre_logits: bool = False):
        x = x.mean(axis=[2, 3])
        return x if pre_logits else self.head(x)

    def forward(self, x):
        return self.forward_head(self.forward_features(x))


class HowLarge:
    """Regression: the digit as a number, from one output."""

    def __init__(self, scale: float = 10.0, *, mode: str):
        self._scale, self.mode = scale, mode

    def __call__(self, network, batch):
        number, truth = network(batch["image"])[:, 0] * self._scale, batch["label"].astype("float32")
        return TaskOutput((number - truth) ** 2, number, truth)


class MeanError:
    """Mean distance of a number from the truth."""

    def __init__(self):
        self.names = ["closeness"]
        self.reset()

    def reset(self):
        self._sums = paddle.zeros([2], dtype="float64")

    def update(self, outputs, targets, valid=None):
        count = paddle.ones_like(outputs) if valid is None else valid.astype("float32")
        error = paddle.where(count > 0, (outputs - targets).abs(), paddle.zeros_like(outputs))
        self._sums += paddle.stack([error.sum(), count.sum()]).astype("float64")

    def reduce(self, all_reduce):
        self._sums = all_reduce(self._sums)

    def compute(self):
        error, count = self._sums.tolist()
        return {"closeness": 1.0 / (1.0 + error / count), "mean_error": error / count}


class SelfDistillation:
    """Labels, and a teacher that follows the network's outputs: state of the task's own, drawn shares of both."""

    def __init__(self, share: float = 0.5, *, mode: str, loss, class_num: int):
        self._share, self._loss, self._training = share, loss, mode == "Train"
        self.prior = paddle.full([class_num], 1.0 / class_num)
        self.updates = 0

    def prepare(self, batch, rng):
        return {**batch, "share": paddle.to_tensor((rng.random(len(batch["label"])) * self._share).astype("float32"))}

    def __call__(self, network, batch):
        logits, targets = network(batch["image"]).astype("float32"), Targets.of(batch)
        loss = self._loss(logits, targets)
        if self._training:
            soft = -(self.prior * paddle.nn.functional.log_softmax(logits)).sum(axis=1)
            loss = loss * (1.0 - batch["share"]) + soft * batch["share"]
            self.prior = 0.9 * self.prior + 0.1 * paddle.nn.functional.softmax(logits.detach()).mean(axis=0)
            self.updates += 1
        return TaskOutput(loss, logits, targets)

    def state_dict(self):
        return {"prior": self.prior.numpy(), "updates": self.updates}

    def load_state_dict(self, state):
        self.prior, self.updates = paddle.to_tensor(state["prior"]), state["updates"]


class Adversarial:
    """The loss of pictures moved against the network, and a gradient that is taken twice from one graph."""

    def __init__(self, reach: float = 0.0, *, mode: str, loss):
        self._reach, self._loss, self._training = reach, loss, mode == "Train"

    def __call__(self, network, batch):
        targets = Targets.of(batch)
        if not self._training:
            logits = network(batch["image"])
            return TaskOutput(self._loss(logits, targets), logits, targets)
        image = batch["image"].detach()
        image.stop_gradient = False
        (direction,) = paddle.grad(self._loss(network(image), targets).mean(), image)
        logits = network(batch["image"] + self._reach * direction.sign())
        loss = self._loss(logits, targets)
        loss.mean().backward(retain_graph=True)
        return TaskOutput(loss, logits, targets)


@pytest.fixture(scope="module", autouse=True)
def registered():
    """The parts above, for this file alone."""
    parts = {MODELS: [NormalisedConvNet], TASKS: [HowLarge, SelfDistillation, Adversarial], METRICS: [MeanError]}
    before = {registry: dict(registry._entries) for registry in parts}
    for registry, factories in parts.items():
        for factory in factories:
            registry.register()(factory)
    yield
    for registry, entries in before.items():
        registry._entries = entries


def config(output_dir="run", *, task=None, model=None, steps: int = 6, **globals_):
    tree = tiny_digits()
    tree["Global"] |= {"output_dir": str(output_dir), "max_train_step": steps, "eval_during_train": True, **globals_}
    if task:
        tree["Task"] = task
    if model:
        tree["Model"] = model
        tree["Optimizer"]["no_weight_decay"] = ["bias", "norm", "token", "position"]
    return tree


# -- tasks ------------------------------------------------------------------------------------


def regression(output_dir="run", **globals_) -> dict:
    tree = config(output_dir, task={"name": "HowLarge", "scale": 5.0}, **globals_)
    tree["Model"]["class_num"] = 10
    tree["Metric"] = {"Train": [{"MeanError": {}}], "Eval": [{"MeanError": {}}]}
    del tree["Loss"]
    return tree


def test_a_regression_trains_and_is_evaluated():
    """Its own loss and metric, no section Loss; the best checkpoint is picked by its figure."""
    tree = regression(steps=60)
    tree["Global"]["epochs"] = 2
    tree["LRScheduler"] = {"learning_rate": 0.01}
    result = plsc.train(load(tree))
    assert result.last.keys() == {"loss", "closeness", "mean_error", "samples"} and result.last["samples"] == 360
    records = metrics("run")
    assert records[-1]["mean_error"] < 0.7 * records[0]["mean_error"]
    assert result.last["mean_error"] < 2.5  # the mean of all digits is off by 2.5
    assert result.best["metric"] == "closeness"
    again = plsc.evaluate("run")
    assert again["closeness"] == pytest.approx(result.best["value"], rel=1e-5)
    assert load("run/config.yaml").Task.arguments == {"scale": 5.0}


def test_the_state_of_a_task_is_saved():
    """Prepared batches and state between updates: a continued run ends bit-equal, in two parts each."""
    task = {"name": "SelfDistillation", "share": 0.3}
    plsc.train(load(config("straight", task=task, accum_steps=2)))
    plsc.train(load(config("broken", task=task, accum_steps=2, steps=3)))
    plsc.train(load(config("broken", task=task, accum_steps=2, resume="auto")))
    for part in ("model", "optimizer", "task"):
        one, two = (load_file(f"{run}/checkpoints/step-00000006/{part}.safetensors") for run in ("straight", "broken"))
        assert one.keys() == two.keys() and all(one[name].tobytes() == two[name].tobytes() for name in one)
    trainer = json.loads(Path("broken/checkpoints/step-00000006/trainer.json").read_text())
    assert trainer["parts"]["task"] == {"updates": 12} and "task" in trainer["files"]
    losses = [[record["loss"] for record in metrics(run)] for run in ("straight", "broken")]
    assert losses[0] == losses[1]


def test_a_task_that_begins_on_a_resume_is_reported():
    plsc.train(load(config(steps=2)))
    plsc.train(load(config(steps=3, task={"name": "SelfDistillation"}, resume="auto")))
    assert "has no state of task, which begins now" in Path("run/train.log").read_text()


def test_a_task_may_call_paddle_grad_and_take_two_backwards(tmp_path):
    """On CPU by default. Where pictures stay, gradients are twice those of classification; where they move, others."""
    tasks = [{"name": "Classification"}, {"name": "Adversarial"}, {"name": "Adversarial", "reach": 0.1}]
    norms = []
    for number, task in enumerate(tasks):
        trainer = assemble(load(config(tmp_path / str(number), task=task)), World())
        head = trainer.model.head.weight  # zero at first, which gives pictures no gradient
        head.set_value(paddle.linspace(-1.0, 1.0, head.size).reshape(head.shape))
        trainer.model.train()
        norms.append(float(trainer.advance(trainer.feed.loader.run(trainer.sampler.batches(0)))))
        trainer.feed.loader.close()
    assert norms[1] == pytest.approx(2 * norms[0], rel=1e-4) and norms[2] > 1.001 * norms[1]


def test_quicker_layers_are_for_own_tasks_where_they_are_asked_for(tmp_path):
    def quick(folder, **globals_):
        model = assemble(load(config(tmp_path / folder, task={"name": "Adversarial"}, **globals_)), World()).model
        return any(type(layer).__module__ == cpu_forms.__name__ for layer in model.sublayers())

    with log_texts(logging.INFO) as texts:
        assert not quick("default")
    assert sum("task Adversarial is not plsc's" in text for text in texts) == 1
    assert quick("asked", cpu_forms=True) and not quick("refused", cpu_forms=False)


def test_classification_is_a_task_like_others():
    task = Classification(loss=CELoss(), class_num=10)
    assert (
        isinstance(task, Task)
        and isinstance(task, PreparesBatch)
        and not isinstance(HowLarge(mode="Eval"), PreparesBatch)
    )
    batch = {"image": paddle.ones([4, 1, 8, 8]), "label": paddle.to_tensor([0, 1, 2, 3])}
    output = task(lambda image: image.flatten(1)[:, :10].astype("float16"), batch)
    assert output.outputs.dtype == paddle.float32 and list(output.loss.shape) == [4]


def test_a_mean_instead_of_a_loss_for_each_sample_is_refused():
    with pytest.raises(ValueError, match=r"the loss of a task has the shape \[\], not \[4\]"):
        TaskOutput(paddle.ones([]), paddle.ones([4, 10]), None)


def test_an_unknown_task_is_named_with_the_nearest():
    with pytest.raises(ConfigError, match=r"Task.*did you mean HowLarge"):
        load(config(task={"name": "HowLrge"}))
    with pytest.raises(ConfigError, match=r"Task\.scal.*did you mean scale"):
        load(config(task={"name": "HowLarge", "scal": 1.0}))


def test_losses_are_asked_for_where_the_task_takes_them():
    tree = regression()
    tree["Task"] = {"name": "SelfDistillation"}
    with pytest.raises(ConfigError, match="Loss"):
        load(tree)


# -- models -----------------------------------------------------------------------------------

CONVNET = {"name": "NormalisedConvNet", "class_num": 10}


def test_running_means_are_saved_and_restored():
    """Stopped and continued, the run ends bit-equal, buffers included; evaluation of the checkpoint agrees."""
    plsc.train(load(config("straight", model=CONVNET)))
    plsc.train(load(config("broken", model=CONVNET, steps=3)))
    result = plsc.train(load(config("broken", model=CONVNET, resume="auto")))
    one, two = (load_file(f"{run}/checkpoints/step-00000006/model.safetensors") for run in ("straight", "broken"))
    assert {"body.1._mean", "body.1._variance"} <= one.keys()
    assert one.keys() == two.keys() and all(one[name].tobytes() == two[name].tobytes() for name in one)
    assert np.abs(one["body.1._mean"]).max() > 0.01
    assert plsc.evaluate("broken/checkpoints/latest")["loss"] == pytest.approx(result.last["loss"], rel=1e-5)


def test_layer_decay_says_what_a_model_lacks():
    tree = config(model=CONVNET)
    tree["Optimizer"]["layer_decay"] = 0.7
    with pytest.raises(ConfigError, match=r"Optimizer.layer_decay.*NormalisedConvNet has no layer_id"):
        assemble(load(tree), World())


@pytest.mark.parametrize("how", ["to_static", "recompute"])
def test_a_model_without_blocks_is_one_block(how):
    """Compiled or recomputed as a whole, it trains to the same losses."""
    plain = {"name": "NormalisedConvNet", "class_num": 10}
    plsc.train(load(config("plain", model=plain, steps=3)))
    tree = config("other", model=plain, steps=3)
    if how == "to_static":
        tree["Global"]["to_static"] = True
    else:
        tree["DistributedStrategy"] = {"recompute": {}}
    plsc.train(load(tree))
    losses = [[record["loss"] for record in metrics(run)] for run in ("plain", "other")]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)


def test_tokens_are_exempt_from_decay_where_a_model_names_them():
    """A convolutional network has none; its biases and norms are exempt all the same."""
    run = load(config(model=CONVNET))
    update = build.optimizer(run, build.model(run), multi_precision=False)
    names = {id(parameter): name for name, parameter in update.named}
    decays = {
        names[id(parameter)]: group["weight_decay"]
        for group in update.paddle_optimizer._param_groups
        for parameter in group["params"]
    }
    assert {name for name, decay in decays.items() if decay == 0.0} == {
        "body.0.bias",
        "body.1.bias",
        "body.1.weight",
        "head.bias",
    }
    assert len(decays) == 6


def test_running_statistics_are_averaged_over_the_processes(monkeypatch):
    """Batch normalisation's alone: frozen weights keep every bit, though a third of three times them may not."""
    from plsc.engine.distributed import World

    model = paddle.nn.Sequential(paddle.nn.Linear(3, 4), paddle.nn.BatchNorm1D(4))
    model[0].weight.stop_gradient = True
    weight = model[0].weight.numpy()
    mean, variance = np.arange(4, dtype="float32"), np.full(4, 2.0, "float32")
    model[1]._mean.set_value(mean)
    model[1]._variance.set_value(variance)
    monkeypatch.setattr(World, "all_reduce", lambda self, tensor: tensor + 2 * 10.0)  # two others have 10 everywhere
    World(size=3).average_statistics(model)
    np.testing.assert_allclose(model[1]._mean.numpy(), (mean + 20) / 3, rtol=1e-6)
    np.testing.assert_allclose(model[1]._variance.numpy(), (variance + 20) / 3, rtol=1e-6)
    assert np.array_equal(model[0].weight.numpy(), weight)
    World().average_statistics(model)  # one process: as it is
    np.testing.assert_allclose(model[1]._mean.numpy(), (mean + 20) / 3, rtol=1e-6)


@pytest.mark.slow
def test_a_linear_probe_of_a_run_trains_and_is_exported(tmp_path, monkeypatch):
    """The backbone's weights come in without the batch normalisation, which has none there, and stay as they are."""
    monkeypatch.chdir(tmp_path)
    trees = [tiny_digits(), tiny_digits()]
    for tree, run in zip(trees, ("first", "probe"), strict=True):
        tree["Global"] |= {"output_dir": run, "max_train_step": 3}
    trees[1]["Global"] |= {"pretrained_model": "first", "finetune": True}
    trees[1]["Model"] |= {"head_batch_norm": True, "head_init": 0.01}
    trees[1]["LRScheduler"] = {"name": "Cosine", "learning_rate": 5.0}
    frozen = ["patch_embed.*", "cls_token", "pos_embed", "blocks.*", "norm.*"]
    trees[1]["Optimizer"] = {"name": "LARS", "momentum": 0.9, "no_weight_decay": ["1d"], "freeze": frozen}
    for tree in trees:
        plsc.train(load(tree))
    first, probe = (plsc.load_model(run).network.state_dict() for run in ("first", "probe"))
    for name, tensor in first.items():
        assert np.array_equal(tensor.numpy(), probe[name].numpy()) == (not name.startswith("head.")), name
    assert probe["head_norm._mean"].numpy().any()
    done = plsc.export_model("probe", output="exported")  # which compares it with the model
    assert all(check.difference < 1e-4 for check in done.checks)
