"""Training: assemble the parts, then the loop."""

import contextlib
import dataclasses
import logging
from pathlib import Path

import numpy as np
import paddle

from plsc import build, compat, loading
from plsc.config import Config
from plsc.data.preprocess import Preprocess
from plsc.engine import blocks, checkpoint, run_directory
from plsc.engine.accumulation import GradientSums
from plsc.engine.callbacks import Callbacks, RunInfo
from plsc.engine.checkpoint import Checkpoints
from plsc.engine.distributed import World
from plsc.engine.ema import WeightAverage
from plsc.engine.evaluator import Evaluator
from plsc.engine.guard import FiniteGuard
from plsc.engine.precision import Precision
from plsc.engine.profiling import Profile
from plsc.engine.stopping import StopRequest
from plsc.engine.tracking import Meter, Tracker, duration, progress_bar
from plsc.errors import CheckpointError, ConfigError
from plsc.metrics import Mean
from plsc.model_card import ModelCard
from plsc.optim.groups import freeze
from plsc.targets import Targets
from plsc.tensors import assign, to_numpy

log = logging.getLogger("plsc")


def draw_seed(seed: int, step: int, micro_batch: int, rank: int) -> int:
    """Seed of Paddle's generator for one micro-batch. A function of its arguments alone, so that
    no generator's state needs saving."""
    return int(np.random.SeedSequence([seed, step, micro_batch, rank]).generate_state(1, np.uint64)[0]) >> 2


class Trainer:
    """One run. Attributes are its parts; `fit` is the loop.

    Attributes:
        step: updates done. total_steps: updates of the whole run; the schedule's length is schedule_steps.
        model: the network itself. network: what forward goes through (data-parallel where there are several).
    """

    def __init__(self, config: Config, world: World, callbacks: Callbacks | None = None):
        self.config, self.world = config, world
        self.callbacks = callbacks or Callbacks((), is_first=world.is_first)
        g = config.Global
        self.output_dir = Path(g.output_dir)
        run_directory.check_shared(self.output_dir, world)
        start = world.broadcast(self._starting_point())
        saved = checkpoint.read(start) if start else None
        if saved and saved.trainer["seed"] != g.seed:
            log.warning("the order of samples continues with the checkpoint's seed %d", saved.trainer["seed"])
            g.seed = saved.trainer["seed"]

        if world.size > 1 and not config.DistributedStrategy.data_parallel:
            path = ("DistributedStrategy", "data_parallel")
            raise config.error(path, f"is False, but there are {world.size} processes")

        # data and precision
        if "Train" not in config.DataLoader:
            raise ConfigError("DataLoader.Train is missing: there is nothing to train on")
        data = build.dataset(config, "Train")
        self.config = config = build.resolve_class_num(config, data)
        batch_size = build.local_batch_size(config, world.size, saved.trainer["global_batch"] if saved else None)
        if saved:  # what the run directory's config.yaml then says is what is done
            arguments = config.DataLoader["Train"].sampler.arguments
            arguments["batch_size"] = None
            lanes = saved.trainer.get("order", arguments)["lanes"]
            if lanes != arguments["lanes"]:
                log.warning("the order of samples continues with the checkpoint's %d lanes", lanes)
                arguments["lanes"] = lanes
        self.train = build.feed(config, "Train", batch_size=batch_size, data=data)
        self.sampler = build.sampler(config, self.train.data, batch_size, world.rank, world.size)
        if self.sampler.global_batch > len(self.train.data):
            log.warning(
                "the global batch of %d is larger than the %d training samples: each update repeats some",
                self.sampler.global_batch,
                len(self.train.data),
            )
        self.precision = Precision(config.FP16, world.on_cpu)
        self.evaluation = self._build_evaluation()
        self.preprocess = self._preprocess()
        self.steps_per_epoch = self.sampler.steps_per_epoch
        self.schedule_steps = g.epochs * self.steps_per_epoch if g.epochs else g.max_train_step
        self.total_steps = min(self.schedule_steps, g.max_train_step or self.schedule_steps)

        # model and optimizer
        self.model = build.model(config)
        if g.pretrained_model and not saved:
            try:
                report = loading.load_pretrained(
                    self.model,
                    g.pretrained_model,
                    reset_head=g.finetune,
                    class_names=self.train.data.class_names,
                    position=g.position_embedding,
                )
            except CheckpointError as error:
                raise config.error(("Global", "pretrained_model"), str(error)) from error
            log.info("weights of %s: %s", g.pretrained_model, report)
        elif g.finetune and not saved:
            log.warning("Global.finetune is True, but there is no Global.pretrained_model: training from scratch")
        try:
            self.frozen = freeze(self.model, config.optimizer_options.freeze)
        except ConfigError as error:
            raise config.error(("Optimizer", "freeze"), str(error)) from error
        self.optimizer = build.optimizer(config, self.model, self.precision.keeps_masters)
        exact = {name: to_numpy(p) for name, p in self.optimizer.named} if self.precision.keeps_masters else {}
        self.model, self.optimizer.paddle_optimizer = self.precision.decorate(
            self.model, self.optimizer.paddle_optimizer
        )
        if exact:  # else Paddle would make the masters of weights that half precision has rounded
            self.optimizer.create_state()
            self.optimizer.assign_masters(exact)
        self._prepare_blocks()
        self.network = world.parallel(self.model)
        self.mixers = build.mixing(config)
        self.loss = build.losses(config, "Train")
        self.metrics = build.metrics(config, "Train")
        self.schedule = build.schedule(config, self.schedule_steps, self.steps_per_epoch)
        ema = config.EMA
        self.average = WeightAverage(self.optimizer.weights, ema.decay, ema.thres_steps) if ema else None

        # position, files, talk
        self.step, self.saved_step, self.best = 0, 0, None
        self.checkpoints = Checkpoints(self.output_dir / "checkpoints", g.max_num_latest_checkpoint)
        self.guard, self.stop, self.meter = FiniteGuard(), StopRequest(world), Meter()
        self.mean_loss = Mean("loss")
        self.last_evaluation = None
        if saved:
            self._restore(saved)
        if world.is_first:
            run_directory.write_description(config, world)
            if start and Path(start).resolve().parent == self.checkpoints.folder.resolve():
                self.checkpoints.point("latest", self.step)  # where a run that went back goes on from
        self.tracker = Tracker(
            self.output_dir if world.is_first else None, use_visualdl=g.use_visualdl, resumed_at=self.step
        )

    # -- the loop -------------------------------------------------------------------------

    def fit(self) -> tuple[bool, dict]:
        """Train to the end, or to a signal's stop.

        Returns:
            (finished, results): whether the end was reached, and the last evaluation's results.
        """
        try:
            with self.stop:
                return self._fit()
        finally:
            self.tracker.close()
            self.train.loader.close()
            if self.evaluation is not None:
                self.evaluation.loader.close()

    def _fit(self) -> tuple[bool, dict]:
        g = self.config.Global
        self._describe()
        self.model.train()
        profile = Profile(g.profiler_options, g.output_dir) if g.profiler_options else None
        batches = self.train.loader.run(self.sampler.batches(self.step))
        bar = progress_bar(self.total_steps, self.step, "training", show=self.world.is_first)
        stopped, finished = False, self.step >= self.total_steps
        if finished:
            log.info(
                "nothing is left to train: the checkpoint is of step %d, the run ends at %d",
                self.step,
                self.total_steps,
            )
            self._evaluate()
        self.callbacks.start(
            RunInfo(
                Path(g.output_dir),
                self.config,
                self.step,
                self.total_steps,
                self.steps_per_epoch,
                self.world.rank,
                self.world.size,
            )
        )
        self.world.barrier()
        self.meter.read()
        while not (stopped or finished):
            norm = self.advance(batches)
            bar.update()
            finished = self.step == self.total_steps
            if finished or self.step == 1 or self.step % g.print_batch_step == 0:
                self._log(norm)
            stopped = self.stop.agreed() or (profile is not None and profile.step())
            if finished or stopped or self._due(g.save_interval, g.save_unit):
                self._save()
            if not stopped and (finished or self._due(g.eval_interval, g.eval_unit)):
                stopped = not self._evaluate()
                if stopped:
                    self._save()
        bar.close()
        if profile is not None:
            profile.close()
        return finished, self.last_evaluation or {}

    def advance(self, batches):
        """Fetch the next batch and learn from it; returns the gradient norm, on the device."""
        with self.meter.waiting():
            arrays = next(batches)
        loss, norm = self.update(self.train.input(arrays))
        self.step += 1
        self.guard.watch(self.step, loss, None if self.precision.scaler else norm)
        self.meter.count(self.sampler.global_batch)
        return norm

    def update(self, batch):
        """One update from one local batch: forward, loss, backward, clip, step, average.

        Returns:
            (loss, norm): mean loss of the batch and global gradient norm before clipping, on the device.
        """
        count = self.config.Global.accum_steps
        apart = count > 1 and self.precision.accumulates_apart
        sums = GradientSums(self.optimizer.named, self.world) if apart else None
        rows = batch["image"].shape[0] // count
        if self.mixers:
            batch = self._mixed(batch)
        total = paddle.zeros([])
        for i in range(count):
            paddle.seed(draw_seed(self.config.Global.seed, self.step, i, self.world.rank))
            part = batch if count == 1 else {k: v[i * rows : (i + 1) * rows] for k, v in batch.items()}
            last = i == count - 1
            local = apart or not last
            with self.world.accumulating(self.network) if local else contextlib.nullcontext():
                with self.precision.autocast():
                    logits = self.network(part["image"])
                targets = Targets.of(part)
                loss = self.loss(logits, targets).mean() / count
                self.precision.scale(loss).backward()
            if apart:
                sums.take(last)
            total = total + loss.detach()
            for metric in self.metrics:
                metric.update(logits.detach(), targets)
        self.optimizer.set_lr(self.schedule(self.step))
        self.precision.unscale(self.optimizer)
        norm = self.optimizer.clip_gradients()
        self.precision.step(self.optimizer)
        self.optimizer.clear_gradients()
        if self.average is not None:
            self.average.update()
        self.mean_loss.update(total.reshape([1]))
        return total, norm

    def _mixed(self, batch: dict) -> dict:
        """The batch with mixed pictures and dense targets."""
        rng = np.random.default_rng([self.config.Global.seed, self.step, self.world.rank])
        image, target = batch["image"], Targets.of(batch).to_dense(self.model.spec.class_num)
        for mixer in self.mixers:
            image, target = mixer(image, target, rng)
        return {**batch, "image": image, "target": target}

    # -- between updates ------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """Epoch of the last update, from 1."""
        return (max(self.step, 1) - 1) // self.steps_per_epoch + 1

    def _due(self, interval: int, unit: str) -> bool:
        every = interval * (self.steps_per_epoch if unit == "epoch" else 1)
        return interval > 0 and self.step % every == 0

    def _log(self, norm):
        """One line and one record; the only place that reads the training state from the device."""
        self.guard.check(self)
        values = {}
        for metric in (self.mean_loss, *self.metrics):
            metric.reduce(self.world.all_reduce)
            values.update(metric.compute())
            metric.reset()
        speed = self.meter.read()
        seconds_left = speed.pop("seconds_per_step") * (self.total_steps - self.step)
        memory = compat.peak_memory_bytes(self.world.device)
        skipped = int(self.world.all_reduce(paddle.to_tensor([self.train.loader.skipped], dtype="int64")).item())
        record = {
            **values,
            "lr": self.schedule(self.step - 1),
            **speed,
            "grad_norm": None if self.precision.skipped_in_a_row else float(norm.item()),
            "loss_scale": self.precision.loss_scale,
            "memory_bytes": memory,
            "skipped_updates": self.precision.skipped or None,
            "skipped_images": skipped or None,
        }
        with self.meter.pause():
            self.callbacks.after_step(self.step, {"epoch": self.epoch, **record})
        if not self.world.is_first:
            return
        self.tracker.write("train", self.step, epoch=self.epoch, **record)
        shown = [f"epoch {self.epoch}/{-(-self.total_steps // self.steps_per_epoch)}"]
        shown.append(f"step {self.step}/{self.total_steps}")
        shown += [f"{name} {value:.4f}" for name, value in values.items()]
        shown.append(f"lr {record['lr']:.3e}")
        shown.append(f"{record['images_per_second']:.1f} images/s")
        shown.append(f"data wait {100 * record['data_time_fraction']:.0f} %")
        if record["grad_norm"] is None:
            shown.append("update skipped: its gradients overflowed")
        else:
            shown.append(f"grad norm {record['grad_norm']:.3f}")
        if self.precision.scaler is not None:
            shown.append(f"loss scale {record['loss_scale']:g} ({self.precision.skipped} skipped)")
        if memory is not None:
            shown.append(f"memory {memory / 2**30:.1f} GiB")
        shown.append(f"ETA {duration(seconds_left)}")
        log.info("  ".join(shown))

    def _evaluate(self) -> bool:
        """Evaluate the raw and, as configured, the averaged weights; remember the best.

        Returns False where a signal ended it before its end.
        """
        if self.evaluation is None:
            return True
        self.guard.check(self)
        with self.meter.pause():
            results = {"raw": self.evaluation.run(self.model, self.stop.agreed)}
            ema = self.config.EMA
            if results["raw"] and ema and ema.ema_eval and self.epoch > ema.eval_start_epoch:
                with self.average.applied(self.model) as averaged:
                    results["ema"] = self.evaluation.run(averaged, self.stop.agreed)
            if None in results.values():
                return False
            for weights, result in results.items():
                self.tracker.write("eval", self.step, epoch=self.epoch, weights=weights, **result)
                shown = "  ".join(f"{k} {v:.4f}" for k, v in result.items() if k != "samples")
                of = " of the averaged weights" if weights == "ema" else ""
                with self.world.first_only():
                    self.callbacks.after_evaluation(self.step, weights, {"epoch": self.epoch, **result})
                log.info("evaluation%s after epoch %d, step %d: %s", of, self.epoch, self.step, shown)
            self._remember_best(results)
            self.last_evaluation = {**results["raw"], **{f"ema_{k}": v for k, v in results.get("ema", {}).items()}}
        return True

    def _remember_best(self, results: dict):
        name = self.evaluation.metrics[0].names[0]
        weights = max(results, key=lambda w: results[w][name])
        value = results[weights][name]
        if self.best is None or value > self.best["value"]:
            self.best = {"metric": name, "value": value, "step": self.step, "weights": weights}
            self._save()
            if self.world.is_first:
                self.checkpoints.point("best", self.step, self.best)
                self.checkpoints.prune()
            of = " of the averaged weights" if weights == "ema" else ""
            log.info("step %d is the best so far: %s %.4f%s", self.step, name, value, of)

    # -- saving and restoring -------------------------------------------------------------

    def _save(self):
        """A checkpoint of this step, unless there is one, by the first process; the others wait."""
        if self.saved_step == self.step:
            return
        self.guard.check(self)
        with self.meter.pause(), self.world.first_only() as mine:
            if mine:
                path = self._write_checkpoint()
                self.checkpoints.point("latest", self.step)
                self.checkpoints.prune()
                log.info("saved %s", path)
                self.callbacks.after_save(self.step, path)
        self.saved_step = self.step

    def _write_checkpoint(self) -> Path:
        weights = self.optimizer.weights()
        model = {name: to_numpy(weights.get(name, p)) for name, p in self.model.named_parameters()}
        arrays = {"model": model, "optimizer": self.optimizer.state_dict()}
        if self.average is not None:
            arrays["ema"] = self.average.state_dict()
        trainer = {
            "format": 1,
            "parts": [part for part, named in arrays.items() if named],
            "step": self.step,
            "samples": self.step * self.sampler.global_batch,
            "epoch": self.epoch,
            "global_batch": self.sampler.global_batch,
            "steps_per_epoch": self.steps_per_epoch,
            "seed": self.config.Global.seed,
            "order": self.sampler.identity(),
            "world_size": self.world.size,
            "best": self.best,
            "precision": self.precision.state_dict(),
            "ema_updates": self.average.updates if self.average is not None else None,
        }
        card = ModelCard(
            model=self.config.Model.name,
            spec=dataclasses.asdict(self.model.spec),
            preprocess=self.preprocess,
            class_names=self.train.data.class_names,
            activation=build.activation(self.config),
            position=self.config.Global.position_embedding,
        )
        return self.checkpoints.save(
            self.step,
            arrays=arrays,
            documents={"trainer": trainer, **card.documents()},
            texts={"config.yaml": run_directory.config_text(self.config)},
            metadata={"format": "plsc", **card.without_documents().to_metadata()},
        )

    def _preprocess(self) -> Preprocess:
        """How pictures enter this model: as DataLoader.Eval says, else resized to what training saw."""
        if "Eval" in self.config.DataLoader:
            return build.recipe_preprocess(self.config)
        height, width, channels = self.train.loader.fetcher.fields()["image"].shape
        decoding = [part for part in self.config.DataLoader["Train"].transforms if part.name == "DecodeImage"]
        seen = Preprocess(resize=(height, width), rgb=all(part.arguments["to_rgb"] for part in decoding))
        n = self.train.normalize
        if n is None:
            return dataclasses.replace(seen, mean=(0.0,) * channels, std=(1.0,) * channels)
        return dataclasses.replace(seen, scale=n.scale, mean=n.mean, std=n.std)

    def _restore(self, saved: checkpoint.Saved):
        """Everything as it was when the checkpoint was written."""
        trainer = saved.trainer
        parameters = dict(self.model.named_parameters())
        model = saved.arrays["model"]
        wrong = [n for n, p in parameters.items() if n not in model or list(model[n].shape) != list(p.shape)]
        if wrong or len(parameters) != len(model):
            unknown = sorted(set(model) - set(parameters))
            raise CheckpointError(
                f"{saved.path}: is of another model: {', '.join((wrong + unknown)[:4])} do not fit; "
                "Model must stay as it was"
            )
        for name, parameter in parameters.items():
            assign(parameter, model[name])
        self.optimizer.load_state_dict(saved.arrays.get("optimizer", {}))
        self.optimizer.assign_masters(model)
        if self.average is not None:
            if "ema" in saved.arrays:
                self.average.load_state_dict(saved.arrays["ema"], trainer["ema_updates"])
            else:
                log.warning("the checkpoint has no averaged weights; the average starts at its weights")
                self.average = WeightAverage(self.optimizer.weights, self.average.decay, self.average.ramp)
        self.precision.load_state_dict(trainer["precision"])
        self.step = self.saved_step = trainer["step"]
        self.best = trainer["best"]
        pointed = self.checkpoints.best_record()  # newer than the checkpoint where an evaluation followed it
        if pointed and pointed["step"] <= self.step and (self.best is None or pointed["value"] > self.best["value"]):
            self.best = pointed
        if trainer["steps_per_epoch"] != self.steps_per_epoch:
            log.warning(
                "an epoch has %d updates, but had %d at the checkpoint: the data set or drop_last changed",
                self.steps_per_epoch,
                trainer["steps_per_epoch"],
            )
        present = self.sampler.identity()
        changed = [name for name, was in trainer.get("order", {}).items() if present.get(name) != was]
        if changed:
            log.warning(
                "the order of samples is another than at the checkpoint, since these changed: %s; of this epoch some "
                "samples may come twice and others not at all",
                ", ".join(changed),
            )
        log.info("continuing %s after step %d", saved.path, self.step)

    # -- assembling -----------------------------------------------------------------------

    def _starting_point(self) -> str | None:
        if not self.world.is_first:
            return None
        path = run_directory.starting_checkpoint(self.config)
        return str(path) if path else None

    def _build_evaluation(self) -> Evaluator | None:
        config = self.config
        wanted = config.Global.eval_during_train
        if wanted is False or (wanted is None and "Eval" not in config.DataLoader):
            return None
        batch_size = config.DataLoader["Eval"].sampler.arguments["batch_size"]
        names = self.train.data.class_names
        data = build.dataset(config, "Eval", class_names=names, owner="the training data")
        feed = build.feed(config, "Eval", batch_size=batch_size, data=data)
        build.compare_parts(config, self.train.data, feed.data)
        return Evaluator.of(config, feed, self.world, self.precision)

    def _prepare_blocks(self):
        g, recompute = self.config.Global, self.config.DistributedStrategy.recompute
        if g.to_static:
            blocks.compile_blocks(self.model)
        if recompute is not None:
            blocks.recompute_blocks(
                self.model,
                interval=recompute.layerlist_interval,
                names=recompute.names,
                on_cpu=self.world.on_cpu,
            )

    def _describe(self):
        g = self.config.Global
        count = sum(int(np.prod(p.shape)) for p in self.model.parameters())
        log.info(
            "%s, %s parameters%s, on %d x %s; global batch %d (%d x %d%s), %d updates, %d an epoch",
            self.config.Model.name,
            f"{count:,}",
            f" ({len(self.frozen)} arrays frozen)" if self.frozen else "",
            self.world.size,
            self.world.device,
            self.sampler.global_batch,
            self.world.size,
            self.sampler.batch_size,
            f" in {g.accum_steps} parts" if g.accum_steps > 1 else "",
            self.total_steps,
            self.steps_per_epoch,
        )
