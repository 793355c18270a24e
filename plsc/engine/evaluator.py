"""Evaluation: every sample exactly once, over any number of processes."""

import paddle

from plsc import build
from plsc.config import Config
from plsc.data.sampler import evaluation_batches
from plsc.engine.tracking import progress_bar
from plsc.metrics import Mean
from plsc.targets import Targets


class ExportedNetwork:
    """An exported model in the place of a network, for the Evaluator.

    Args:
        run: images [B, C, H, W] float32 → logits [B, classes] float32, both NumPy arrays.
    """

    training = False

    def __init__(self, run):
        self._run = run

    def eval(self):
        """Nothing to do: an export is always in evaluation mode."""

    def __call__(self, images):
        return paddle.to_tensor(self._run(images.numpy()))


class Evaluator:
    """Runs a model over a data set.

    Args:
        loader: a Loader over the evaluation data; every process has one.
        size: samples of the data set. batch_size: of one process.
        input: DeviceInput. loss: logits, Targets → [B], or None. metrics: streaming metrics, see plsc.metrics.
    """

    def __init__(self, *, loader, size: int, batch_size: int, input, loss, metrics, precision, world):
        self.loader, self.size, self.batch_size = loader, size, batch_size
        self.input, self.loss, self.metrics = input, loss, metrics
        self.precision, self.world = precision, world

    @classmethod
    def of(
        cls, config: Config, feed: build.Feed, world, precision, *, weights_activation: str | None = None
    ) -> "Evaluator":
        """Over a feed, with the losses and metrics of the configuration's Eval lists.

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
            if hasattr(metric, "attach"):
                metric.attach(feed.data)
        return cls(
            loader=feed.loader,
            size=len(feed.data),
            batch_size=feed.batch_size,
            input=feed.input,
            loss=build.losses(config, "Eval"),
            metrics=metrics,
            precision=precision,
            world=world,
        )

    @paddle.no_grad()
    def run(self, model, stop=lambda: False) -> dict[str, float] | None:
        """Mean loss and metrics over the whole data set, and how many samples they are of.

        Args:
            stop: asked after every batch, on every process alike; when true, nothing is measured and None returned.
        """
        mean = Mean("loss")
        for metric in self.metrics:
            metric.reset()
        batches = evaluation_batches(self.size, self.batch_size, self.world.rank, self.world.size)
        was_training = model.training
        model.eval()
        stopped = False
        with progress_bar(self.size, description="evaluating", leave=False, show=self.world.is_first) as bar:
            for arrays in self.loader.run(batches):
                batch = self.input(arrays)
                with self.precision.autocast():
                    logits = model(batch["image"])
                logits = logits.astype("float32")
                targets, valid = Targets.of(batch), batch["valid"]
                losses = self.loss(logits, targets) if self.loss is not None else paddle.zeros([logits.shape[0]])
                mean.update(losses, valid)
                for metric in self.metrics:
                    metric.update(logits, targets, valid)
                bar.update(min(self.batch_size * self.world.size, self.size - bar.n))
                stopped = stop()
                if stopped:
                    break
        if was_training:
            model.train()
        if stopped:
            return None
        if self.world.on_cpu:
            self.world.barrier()
        metrics = (mean, *self.metrics)
        for metric in metrics:
            metric.reduce(self.world.all_reduce)
        # apart from the sums: a figure that takes long must not keep others waiting in a collective
        result = {name: value for metric in metrics for name, value in metric.compute().items()}
        if self.world.on_cpu:
            self.world.barrier()
        if self.loss is None:
            del result["loss"]
        return {**result, "samples": mean.samples}
