"""Training: the loop, and what happens between updates. Its parts are put together in assembly.py."""

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import paddle

from plsc import build, compat
from plsc.config import Config
from plsc.data.sampler import Sampler
from plsc.engine.accumulation import Accumulation
from plsc.engine.callbacks import Callbacks, RunInfo
from plsc.engine.checkpoint import Checkpointer
from plsc.engine.distributed import World
from plsc.engine.ema import WeightAverage
from plsc.engine.evaluator import Evaluator
from plsc.engine.guard import FiniteGuard
from plsc.engine.loggers import recorded_evaluations
from plsc.engine.precision import Precision
from plsc.engine.profiling import Profile
from plsc.engine.sharding import ShardedAccumulation
from plsc.engine.state import Best, Progress, evaluation_record
from plsc.engine.stopping import StopRequest
from plsc.engine.tracking import Meter, progress_bar
from plsc.errors import TrainingError
from plsc.metrics import Mean, Metric
from plsc.optim import Optimizer, Schedule
from plsc.tasks import PreparesBatch, Task

log = logging.getLogger("plsc")


def draw_seed(seed: int, step: int, micro_batch: int, rank: int) -> int:
    """Seed of Paddle's generator for one micro-batch. A function of its arguments alone, so that
    no generator's state needs saving."""
    return int(np.random.SeedSequence([seed, step, micro_batch, rank]).generate_state(1, np.uint64)[0]) >> 2


@dataclasses.dataclass
class Trainer:
    """One run, put together by plsc.engine.assembly.assemble; `fit` is the loop.

    Attributes:
        model: the network itself. forward: what the task calls, over processes and in the run's precision.
        schedule: update, from 0 → learning rate.
        saved_step: the step of the newest checkpoint in the run's own folder; 0 without any.
        last: figures of the last evaluation, those of averaged weights with the prefix ema_.
        full_speed: images a second at the devices' peak; None where it is unknown.
        optimizer_state_bytes: on the process that keeps most, where it is sharded.
    """

    config: Config
    world: World
    feed: build.Feed
    sampler: Sampler
    task: Task
    model: paddle.nn.Layer
    forward: Callable[[paddle.Tensor], paddle.Tensor]
    accumulation: Accumulation | ShardedAccumulation
    precision: Precision
    optimizer: Optimizer
    schedule: Schedule
    average: WeightAverage | None
    metrics: list[Metric]
    evaluator: Evaluator | None
    progress: Progress
    best: Best
    checkpointer: Checkpointer
    callbacks: Callbacks
    saved_step: int = 0
    last: dict[str, float] = dataclasses.field(default_factory=dict)
    full_speed: float | None = None
    optimizer_state_bytes: int | None = None

    def __post_init__(self) -> None:
        self.stop, self.meter, self.mean_loss = StopRequest(self.world), Meter(self.full_speed), Mean("loss")
        self.guard = FiniteGuard(self.world)
        self._saving_seconds: dict[str, float] = {}  # of checkpoints since the last report

    # -- the loop -------------------------------------------------------------------------

    def fit(self) -> None:
        """Train to the end or, after `stop.listen()`, until a signal stops it."""
        g, progress = self.config.Global, self.progress
        self.callbacks.start(self._info())
        self.world.barrier()  # a callback may take long; the others must not wait for it in a collective
        self.model.train()
        batches = self.feed.loader.run(self.sampler.batches(progress.step), ahead=self.sampler.batches(progress.step))
        try:
            bar = progress_bar(self.progress.total_steps, self.progress.step, "training", show=self.world.is_first)
            with Profile(g.profiler_options, g.output_dir) as profile, bar:
                if progress.finished:
                    log.info("nothing is left to train: the checkpoint is of step %d, the run's last", progress.step)
                stopped = not self.make_up_evaluation()
                self.meter.read()
                while not (stopped or progress.finished):
                    norm = self.advance(batches)
                    bar.update()
                    if progress.finished or progress.step == 1 or progress.due(g.print_batch_step, "step"):
                        self.report(norm)
                    stopped = self.stop.agreed() or profile.step()
                    if progress.finished or stopped or progress.due(g.save_interval, g.save_unit):
                        self.save()
                    if not stopped and (progress.finished or progress.due(g.eval_interval, g.eval_unit)):
                        stopped = not self.evaluate()
                        if stopped:
                            self.save()
                self.finish_saving()
        except BaseException:
            if self.world.size == 1:  # several record the error first and then wait for it, see failures.py
                self._settle()
            raise
        finally:
            self.feed.loader.close()
            if self.evaluator is not None:
                self.evaluator.loader.close()

    def advance(self, batches: Iterator[dict[str, np.ndarray]]) -> paddle.Tensor:
        """Fetch the next batch and learn from it; returns the gradient norm, on the device.

        Where batches are copied while the device computes, the one after is fetched before the update, which may wait
        for the device.
        """
        if not self.feed.input.started:
            self._start_next(batches)
        loss = self.learn(self.feed.input.finish())
        if self.feed.input.copies_ahead and self.progress.step + 1 < self.progress.total_steps:
            self._start_next(batches)
        norm = self.update()
        self.progress.step += 1
        self.guard.watch(self.progress.step, loss, None if self.precision.scaler else norm)
        self.meter.count(self.sampler.global_batch)
        return norm

    def _start_next(self, batches: Iterator[dict[str, np.ndarray]]) -> None:
        with self.meter.waiting():
            arrays = next(batches)
        self.feed.input.start(arrays)

    def learn(self, batch: dict[str, paddle.Tensor]) -> paddle.Tensor:
        """The gradients of one local batch: forward, loss, backward. Returns its mean loss, on the device."""
        seed, step, rank = self.config.Global.seed, self.progress.step, self.world.rank
        if isinstance(self.task, PreparesBatch):
            batch = self.task.prepare(batch, np.random.default_rng([seed, step, rank]))
        total = paddle.zeros([])
        for i, part in enumerate(self.accumulation.split(batch)):
            paddle.seed(draw_seed(seed, step, i, rank))
            with self.accumulation.micro_batch(i):
                output = self.task(self.forward, part)
                loss = output.mean_loss() / self.accumulation.count
                self.accumulation.backward(i, self.precision.scale(loss))
            total = total + loss.detach()
            for metric in self.metrics:
                metric.update(output.outputs.detach(), output.targets)
        self.mean_loss.update(total.reshape([1]))
        return total

    def update(self) -> paddle.Tensor:
        """One update from the gradients: clip, step, average. Returns their norm before clipping, on the device."""
        self.optimizer.set_lr(self.schedule(self.progress.step))
        self.precision.unscale(self.optimizer)
        norm = self.optimizer.clip_gradients()
        self.precision.step(self.optimizer)
        self.optimizer.end_update()
        if self.average is not None:
            self.average.update()
        return norm

    # -- between updates ------------------------------------------------------------------

    def report(self, norm: paddle.Tensor) -> None:
        """The figures since the last report, to the callbacks. Reads from the device."""
        self.check_finite()
        figures: dict[str, float] = {}
        metrics: list[Mean | Metric] = [self.mean_loss, *self.metrics]
        for metric in metrics:
            metric.reduce(self.world.all_reduce)
            figures.update(metric.compute())
            metric.reset()
        counts = [self.feed.loader.skipped, int(self.checkpointer.ended)]
        skipped_images, ended = self.world.all_reduce(paddle.to_tensor(counts, dtype="int64")).numpy().tolist()
        if ended:
            self.finish_saving()
        record = {
            "epoch": self.progress.epoch,
            **figures,
            "lr": self.schedule(self.progress.step - 1),
            **self.meter.read(),
            "grad_norm": None if self.precision.skipped_in_a_row else norm.item(),
            "loss_scale": self.precision.loss_scale,
            "memory_bytes": compat.peak_memory_bytes(self.world.device),
            "optimizer_state_bytes": self.optimizer_state_bytes,
            "skipped_updates": self.precision.skipped or None,
            "skipped_images": skipped_images or None,
            **self._saving_seconds,
        }
        self._saving_seconds = {}
        with self.meter.pause():
            self.callbacks.after_step(self.progress.step, {k: v for k, v in record.items() if v is not None})

    def make_up_evaluation(self) -> bool:
        """Evaluate the weights that the run begins with, where their evaluation is due and metrics.jsonl lacks it.

        A stop or kill after the checkpoint was written cut it off, in part or whole. Measured or not, it is compared
        with the best so far. Returns False where a signal ended it before its end.
        """
        g, progress = self.config.Global, self.progress
        due = progress.finished or (progress.step > 0 and progress.due(g.eval_interval, g.eval_unit))
        if self.evaluator is None or not due:
            return True
        known: dict[str, dict[str, float]] = {}
        if self.world.is_first and self.saved_step == progress.step:  # else the records there are of other weights
            known = recorded_evaluations(Path(g.output_dir), progress.step)
        known = self.world.broadcast(known)
        missing = [weights for weights in self._evaluated() if weights not in known]
        if missing:
            log.info(
                "step %d was saved without its evaluation (%s), which is made up", progress.step, ", ".join(missing)
            )
        return self.evaluate(known)

    def evaluate(self, known: Mapping[str, dict[str, float]] = MappingProxyType({})) -> bool:
        """Evaluate the weights and, as configured, the averaged ones; keep the best.

        Args:
            known: figures by the weights, raw or ema, that were measured and recorded before.

        Returns False where a signal ended it before its end.
        """
        if self.evaluator is None:
            return True
        self.check_finite()
        self.world.average_statistics(self.model)
        results: dict[str, dict[str, float]] = {}
        with self.meter.pause():
            self.checkpointer.meet()
            with self.world.first_only() as mine:
                if mine and self.evaluator.loader.starts_workers:  # they would keep the copy that is being written
                    self._after_save()
            for weights in self._evaluated():
                result = known.get(weights) or self._evaluation(self.evaluator, weights)
                if result is None:
                    return False
                results[weights] = result
            with self.world.first_only() as mine:
                if mine:
                    self._after_save()
                for weights in [w for w in results if w not in known]:
                    record = {"epoch": self.progress.epoch, **results[weights]}
                    self.callbacks.after_evaluation(self.progress.step, weights, record)
            self._keep_best(self.evaluator.metrics[0].names[0], results)
        self.last = {**results["raw"], **{f"ema_{k}": v for k, v in results.get("ema", {}).items()}}
        return True

    def _evaluated(self) -> list[str]:
        """The weights that are evaluated at this step: raw, or raw and ema."""
        ema = self.config.EMA
        averaged = self.average and ema and ema.ema_eval and self.progress.epoch > ema.eval_start_epoch
        return ["raw", "ema"] if averaged else ["raw"]

    def _evaluation(self, evaluator: Evaluator, weights: str) -> dict[str, float] | None:
        """The figures of the weights raw or ema; None where a signal ended it."""
        if self.average is None or weights == "raw":
            return evaluator.run(self.model, self.stop.agreed)
        with self.average.applied(self.model) as averaged:
            return evaluator.run(averaged, self.stop.agreed)

    def _keep_best(self, metric: str, results: dict[str, dict[str, float]]) -> None:
        """Save and point to the best so far by the figure `metric`, where one of these results is it."""
        record = evaluation_record(metric, self.progress.step, results)
        if record is None or not self.best.improved_by(record):
            return
        self.save(best=record)
        of = " of the averaged weights" if record["weights"] == "ema" else ""
        log.info("step %d is the best so far: %s %.4f%s", self.progress.step, metric, record["value"], of)

    def save(self, best: Mapping[str, Any] | None = None) -> None:
        """A checkpoint of this step, unless there is one, by the first process; the others wait while it copies.

        Writing goes on beside training. Where the checkpoint before is not yet written, all wait for it.

        Args:
            best: the record with which `best` is to name it.

        Raises:
            CheckpointError: the checkpoint before could not be written.
        """
        step, saved = self.progress.step, self.saved_step == self.progress.step
        if saved and best is None:
            return
        if not saved:
            self.check_finite()
            self.world.average_statistics(self.model)
        with self.meter.pause():
            self.checkpointer.meet()
            with self.world.first_only() as mine:
                if mine:
                    self._after_save()
                    if not saved:
                        self.checkpointer.save(step, best)
                    elif best is not None:
                        self.checkpointer.point_best(best)
            if not saved:
                self.checkpointer.save_share(step)
        self.saved_step = step

    def finish_saving(self) -> None:
        """Wait for the checkpoint that is being written, if any. Raises CheckpointError where it could not be."""
        with self.meter.pause():
            self.checkpointer.meet()
            with self.world.first_only() as mine:
                if mine:
                    self._after_save()

    def _after_save(self) -> None:
        """Wait for the checkpoint that is being written, if any, and tell the callbacks. On the first process."""
        written = self.checkpointer.wait()
        if written is None:
            return
        seconds = {"checkpoint_copy_seconds": written.copy_seconds, "checkpoint_write_seconds": written.write_seconds}
        self._saving_seconds = {name: self._saving_seconds.get(name, 0.0) + value for name, value in seconds.items()}
        self.callbacks.after_save(written.step, written.path)

    def _settle(self) -> None:
        """As `_after_save`, where the run ends with another error, which is the one that is raised."""
        try:
            self._after_save()
        except Exception as error:
            log.error("%s", error)

    def check_finite(self) -> None:
        """Raise TrainingError where a loss or gradient was not finite: nothing is made of such weights."""
        step = self.guard.first_step()
        if step is None:
            return
        self.finish_saving()
        newest = self.checkpointer.newest() if self.saved_step else None
        epoch = (step - 1) // self.progress.steps_per_epoch + 1
        raise TrainingError(
            f"the loss or gradient of step {step} (epoch {epoch}) is not finite "
            f"(learning rate {self.schedule(step - 1):.3e}).\n"
            f"  Nothing was saved since; the newest checkpoint is {newest or 'none'}.\n"
            "  A lower LRScheduler.learning_rate, a longer warm-up or Optimizer.grad_clip usually helps."
        )

    # -- for the eye ------------------------------------------------------------------------

    def _info(self) -> RunInfo:
        progress = self.progress
        return RunInfo(
            run_directory=Path(self.config.Global.output_dir),
            config=self.config,
            step=progress.step,
            total_steps=progress.total_steps,
            steps_per_epoch=progress.steps_per_epoch,
            global_batch=progress.global_batch,
            rank=self.world.rank,
            world_size=self.world.size,
        )
