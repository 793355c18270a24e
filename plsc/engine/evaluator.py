"""Evaluation: every sample exactly once, over any number of processes."""

from collections.abc import Callable

import numpy as np
import paddle

from plsc import build
from plsc.config import Config
from plsc.data.device import DeviceInput
from plsc.data.loader import Loader
from plsc.data.sampler import evaluation_batches
from plsc.engine.distributed import World
from plsc.engine.precision import Precision
from plsc.engine.tracking import progress_bar
from plsc.inference import Inference
from plsc.metrics import Attached, Mean, Metric
from plsc.targets import Activation
from plsc.tasks import Task


class ExportedNetwork:
    """An exported model in the place of a network, for the Evaluator.

    Args:
        run: images [B, C, H, W] float32 → logits [B, classes] float32, both NumPy arrays.
    """

    training = False

    def __init__(self, run: Callable[[np.ndarray], np.ndarray]):
        self._run = run

    def eval(self) -> None:
        """Nothing to do: an export is always in evaluation mode."""

    def train(self) -> None:
        """Nothing to do: an export cannot be trained."""

    def __call__(self, images: paddle.Tensor) -> paddle.Tensor:
        return paddle.to_tensor(self._run(images.numpy()))


class Evaluator:
    """Runs a network over a data set.

    Args:
        loader: a Loader over the evaluation data; every process has one.
        size: samples of the data set. batch_size: of one process.
        input: DeviceInput.
        task: see plsc.tasks; it makes losses, outputs and targets of a batch.
        metrics: streaming metrics of these, see plsc.metrics.
        inference: how the forward is computed, see plsc.inference.
    """

    def __init__(
        self,
        *,
        loader: Loader,
        size: int,
        batch_size: int,
        input: DeviceInput,
        task: Task,
        metrics: list[Metric],
        precision: Precision,
        world: World,
        inference: Inference,
    ):
        self.loader, self.size, self.batch_size = loader, size, batch_size
        self.input, self.task, self.metrics = input, task, metrics
        self.precision, self.world, self.inference = precision, world, inference

    @classmethod
    def of(
        cls,
        config: Config,
        feed: build.Feed,
        world: World,
        precision: Precision,
        *,
        weights_activation: Activation | None = None,
    ) -> "Evaluator":
        """Over a feed, with the task, losses and metrics of the configuration's Eval lists.

        Args:
            weights_activation: see plsc.build.metrics.

        Raises:
            ConfigError: no figure of the first metric can pick the best checkpoint.
        """
        metrics = build.metrics(config, "Eval", weights_activation=weights_activation)
        if not metrics[0].names:
            first = config.Metric["Eval"][0]
            raise config.error(
                first.path,
                f"{first.name} cannot be the first metric, which picks the best checkpoint by its highest value; put "
                "another one before it, for instance TopkAcc",
            )
        for metric in metrics:
            if isinstance(metric, Attached):
                metric.attach(feed.data)
        return cls(
            loader=feed.loader,
            size=len(feed.data),
            batch_size=feed.batch_size,
            input=feed.input,
            task=build.task(config, "Eval"),
            metrics=metrics,
            precision=precision,
            world=world,
            inference=Inference(config.Global.inference if world.on_cpu else "dygraph"),
        )

    @paddle.no_grad()
    def run(
        self, network: paddle.nn.Layer | ExportedNetwork, stop: Callable[[], bool] = lambda: False
    ) -> dict[str, float] | None:
        """Mean loss and metrics over the whole data set, and how many samples they are of.

        Args:
            stop: asked after every batch, on every process alike; when true, nothing is measured and None returned.
        """
        loss, count = Mean("loss"), Mean("samples")
        for metric in self.metrics:
            metric.reset()
        batches = evaluation_batches(self.size, self.batch_size, self.world.rank, self.world.size)
        forward = self.precision.forward(lambda images: self.inference(network, images))
        was_training = network.training
        network.eval()
        try:
            with progress_bar(self.size, description="evaluating", leave=False, show=self.world.is_first) as bar:
                for number, arrays in enumerate(self.loader.run(batches)):
                    batch = self.input(arrays)
                    if number == 0 and isinstance(network, paddle.nn.Layer):
                        self._make_graph(network, batch["image"])
                    output, valid = self.task(forward, batch), batch["valid"]
                    count.update(paddle.ones_like(valid, dtype="float32"), valid)
                    if output.loss is not None:
                        loss.update(output.loss, valid)
                    for metric in self.metrics:
                        metric.update(output.outputs, output.targets, valid)
                    bar.update(min(self.batch_size * self.world.size, self.size - bar.n))
                    if stop():
                        return None
        finally:
            self.inference.close()
            if was_training:
                network.train()
        if self.world.on_cpu:
            self.world.barrier()
        figures: list[Mean | Metric] = [loss, *self.metrics]
        for figure in (count, *figures):
            figure.reduce(self.world.all_reduce)
        # apart from the sums: a figure that takes long must not keep others waiting in a collective
        result = {name: value for figure in figures for name, value in figure.compute().items()}
        if self.world.on_cpu:
            self.world.barrier()
        if loss.samples == 0:
            del result["loss"]
        return {**result, "samples": count.samples}

    def _make_graph(self, network: paddle.nn.Layer, images: paddle.Tensor) -> None:
        """Make the network's graph where that pays for any process; the others' evaluation ends no sooner."""
        if self.inference.mode == "dygraph":
            return
        pays = self.inference.pays(network, -(-self.size // self.world.size))
        self.world.barrier()  # not in the collective: a first batch, or a graph, may take a process long
        if self.world.all_reduce_max(paddle.to_tensor([int(pays)])).item() and self.inference.undecided:
            self.inference.convert(network, images)
        self.world.barrier()
