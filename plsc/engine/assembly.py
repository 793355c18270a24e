"""Config → Trainer: what a run starts from, its parts, and their state where it continues."""

import dataclasses
import logging
import math
from pathlib import Path

import numpy as np
import paddle

from plsc import build, checksums, environment, loading, places
from plsc.config import Config
from plsc.data.preprocess import Preprocess
from plsc.data.sampler import Sampler
from plsc.data.words import some
from plsc.engine import blocks, checkpoint, run_directory, utilisation
from plsc.engine.accumulation import Accumulation
from plsc.engine.callbacks import Callbacks
from plsc.engine.capacity import check_memory
from plsc.engine.checkpoint import Checkpointer, Checkpoints, Description, Saved
from plsc.engine.distributed import World
from plsc.engine.ema import WeightAverage
from plsc.engine.evaluator import Evaluator
from plsc.engine.precision import Precision
from plsc.engine.sharding import ShardedAccumulation, Sharding, check_sharding
from plsc.engine.shares import SharedCheckpointer
from plsc.engine.state import Best, Copied, Progress, ProgressState, Stateful, Weights
from plsc.engine.trainer import Trainer
from plsc.errors import CheckpointError, ConfigError
from plsc.inference import Inference
from plsc.model_card import ModelCard
from plsc.models import cpu_forms
from plsc.optim import Optimizer
from plsc.optim.groups import freeze
from plsc.runs.compare import changed_settings
from plsc.tensors import to_numpy
from plsc.weights import Source
from plsc.weights import read as read_weights

log = logging.getLogger("plsc")

# what a continued run takes from its checkpoint; a difference has a warning of its own
_KEPT = (
    "Global.seed",
    "Global.global_batch_size",
    "DataLoader.Train.sampler.batch_size",
    "DataLoader.Train.sampler.lanes",
)


def assemble(config: Config, world: World, callbacks: Callbacks | None = None, *, verify: bool = True) -> Trainer:
    """A run, ready for `fit`: fresh, from pretrained weights, or as its checkpoint was.

    Files that must be there are looked at first, then the data sets are opened, then the model is made.

    Args:
        verify: compare the files of a checkpoint with their checksums.

    Raises:
        PlscError: what the configuration asks for does not exist or does not fit.
    """
    _check_processes(config, world)
    saved = _starting_checkpoint(config, world, verify)
    if saved is not None:
        config = _continued(config, saved, world)
    pretrained = _pretrained(config, verify) if saved is None else None

    config, feed, sampler = _training_data(config, world)
    precision = Precision.of(config, world)
    evaluator = _evaluator(config, feed, world, precision)
    schedule_steps = _schedule_steps(config, sampler.steps_per_epoch)
    progress = Progress(
        sampler,
        total_steps=min(schedule_steps, config.Global.max_train_step or schedule_steps),
        seed=config.Global.seed,
        world_size=world.size,
        held_out=build.held_out(config.DataLoader["Train"].dataset),
    )
    check_memory(config, world, precision, batch_size=feed.batch_size)
    model = _model(config, feed, pretrained)
    sharding = Sharding.of(config, model, world)
    optimizer, model = _optimizer(config, model, precision, sharding)
    _prepare_blocks(config, model, world)
    network = world.parallel(model) if sharding is None else sharding.prepare(model)
    task, best = build.task(config, "Train", class_num=model.spec.class_num), Best()

    weights = Weights(model, optimizer, saves=None if sharding is None else sharding.saves)
    parts: dict[str, Stateful] = {"model": weights, "optimizer": optimizer, "precision": precision}
    parts |= {"progress": progress, "best": best}
    if isinstance(task, Stateful):
        parts["task"] = Copied(task)
    if saved is not None:
        if world.is_first:
            _report_changes(config, saved)
        saved.restore(parts)
    average = None
    if config.EMA:  # it begins at the weights, so after they are restored
        average = parts["ema"] = WeightAverage(
            optimizer.weights,
            config.EMA.decay,
            config.EMA.thres_steps,
            changed=None if sharding is None else sharding.send_weights,
        )
        if saved is not None:
            saved.restore({"ema": average})
    state_bytes = None
    if sharding is not None:
        sharding.start()
        state_bytes = _state_bytes(sharding, optimizer, world)
    checkpoints = _run_directory(config, saved, progress, best, world)
    _describe(config, model, precision, progress, world)
    return Trainer(
        config=config,
        world=world,
        feed=feed,
        sampler=sampler,
        task=task,
        model=model,
        forward=precision.forward(network),
        accumulation=_accumulation(config, network, optimizer, precision, sharding, world),
        precision=precision,
        optimizer=optimizer,
        schedule=build.schedule(config, schedule_steps, sampler.steps_per_epoch),
        average=average,
        metrics=build.metrics(config, "Train"),
        evaluator=evaluator,
        progress=progress,
        best=best,
        checkpointer=_checkpointer(checkpoints, parts, _description(config, model, feed), sharding, world),
        callbacks=callbacks or Callbacks((), is_first=world.is_first),
        saved_step=progress.step if saved is not None and _is_own(saved, checkpoints) else 0,
        full_speed=_full_speed(config, model, precision, world),
        optimizer_state_bytes=state_bytes,
    )


# -- what a run starts from -----------------------------------------------------------------


def _check_processes(config: Config, world: World) -> None:
    if "Train" not in config.DataLoader:
        raise ConfigError("DataLoader.Train is missing: there is nothing to train on")
    if world.size > 1 and not config.DistributedStrategy.data_parallel:
        path = ("DistributedStrategy", "data_parallel")
        raise config.error(path, f"is False, but there are {world.size} processes")
    check_sharding(config, world)
    run_directory.check_shared(Path(config.Global.output_dir), world)


def _starting_checkpoint(config: Config, world: World, verify: bool) -> Saved | None:
    """The checkpoint that the run continues, as the first process chooses it.

    The first process of each node compares it with its checksums, and all of them that theirs is the one chosen: what
    a path leads to may differ from node to node.
    """
    saved = None
    with world.first_only() as mine:
        if mine:
            saved = run_directory.starting_checkpoint(config, verify=verify)
    chosen = world.broadcast((str(saved.path), checksums.fingerprint(saved.path)) if saved else None)
    if chosen is None or saved is not None:
        return saved
    path, fingerprint = chosen
    saved = checkpoint.read(path, verify=verify and world.rank % environment.local_size() == 0)
    if checksums.fingerprint(saved.path) != fingerprint:
        raise CheckpointError(
            f"{path}: process {world.rank} finds another checkpoint there than the first process; the path must lead "
            "to the same files on every node"
        )
    return saved


def _continued(config: Config, saved: Saved, world: World) -> Config:
    """The configuration with what the checkpoint fixes: seed, global batch and lanes, the order of samples."""
    g, sampler = config.Global, config.DataLoader["Train"].sampler.arguments
    state = saved.validated("progress", ProgressState)
    _check_held_out(config, saved, state)
    changes = {
        "Global.seed": state.seed,
        "Global.global_batch_size": state.global_batch,
        "DataLoader.Train.sampler.batch_size": None,
    }
    if state.seed != g.seed:
        log.warning("the order of samples continues with the checkpoint's seed %d", state.seed)
    asked = g.global_batch_size or (sampler["batch_size"] or 0) * world.size
    if asked != state.global_batch:
        log.warning("a continued run keeps its global batch of %d, not the %d asked for", state.global_batch, asked)
    lanes = state.order.get("lanes")
    if lanes is not None and lanes != sampler.get("lanes", lanes):
        log.warning("the order of samples continues with the checkpoint's %d lanes", lanes)
        changes["DataLoader.Train.sampler.lanes"] = lanes
    return config.replace(changes)


def _report_changes(config: Config, saved: Saved) -> None:
    """Log which settings differ from those that the checkpoint was trained with, if its config.yaml can be read."""
    try:
        changed = changed_settings(saved.path, config.to_dict())
    except ConfigError as error:
        log.warning(
            "which settings differ from those of %s is unknown, and the run goes on with its own: %s",
            saved.path.name,
            error,
        )
        return
    shown = [f"{key} {before} → {now}" for key, (before, now) in changed.items() if key not in _KEPT]
    if shown:
        log.info("settings that differ from those of %s: %s", saved.path.name, some(shown))


def _check_held_out(config: Config, saved: Saved, state: ProgressState) -> None:
    """Refuse to train on what the run held out until now, or to evaluate on what it trained on."""
    if state.held_out is None:
        return
    now = build.held_out(config.DataLoader["Train"].dataset)
    for key in {**now, **state.held_out}:
        if now.get(key) != state.held_out.get(key):
            raise config.error(
                ("DataLoader", "Train", "dataset", *key.split(".")),
                f"is {now.get(key)}, but {state.held_out.get(key)} in {saved.path}, which is continued: training would "
                "see pictures that were held out; set it as it was, or begin another run with these weights as "
                "Global.pretrained_model",
            )


def _pretrained(config: Config, verify: bool) -> Source | None:
    """The weights of Global.pretrained_model, opened."""
    g = config.Global
    if not g.pretrained_model:
        if g.finetune:
            log.warning("Global.finetune is True, but there is no Global.pretrained_model: training from scratch")
        return None
    try:
        return read_weights(g.pretrained_model, verify=verify)
    except CheckpointError as error:
        config.check_input(("Global", "pretrained_model"), g.pretrained_model)
        raise config.error(("Global", "pretrained_model"), str(error)) from error


def _run_directory(config: Config, saved: Saved | None, progress: Progress, best: Best, world: World) -> Checkpoints:
    """The run's checkpoints, and its directory as it is when the run begins or continues."""
    g = config.Global
    checkpoints = Checkpoints(Path(g.output_dir) / places.CHECKPOINTS, g.max_num_latest_checkpoint)
    own = saved is not None and _is_own(saved, checkpoints)
    record = None
    if saved is not None:
        log.info("continuing %s after step %d", saved.path, progress.step)
        world.barrier()  # not in the collective: reading may take long
        # newer than the checkpoint where an evaluation followed it
        record = world.broadcast(checkpoints.best_record() if world.is_first else None)
        if record and record["step"] <= progress.step:
            best.improved_by(record)
    if world.is_first:
        if not (own and progress.finished):  # a run that is over was not trained with what is asked for now
            run_directory.write_description(config, world)
        if own:
            checkpoints.point("latest", progress.step)  # where a run that went back is to be continued
            if record is None or record != best.record:  # damaged, not yet written, or of a later step
                checkpoints.correct_best(progress.step, best.record)
    return checkpoints


def _is_own(saved: Saved, checkpoints: Checkpoints) -> bool:
    """Whether a checkpoint lies in the run's own folder."""
    return saved.path.resolve().parent == checkpoints.folder.resolve()


# -- parts ------------------------------------------------------------------------------------


def _training_data(config: Config, world: World) -> tuple[Config, build.Feed, Sampler]:
    """The configuration with what follows from the data, the data, and its order."""
    data = build.dataset(config, "Train")
    config = build.resolve_class_num(config, data)
    batch_size = build.local_batch_size(config, world.size)
    feed = build.feed(config, "Train", batch_size=batch_size, data=data)
    sampler = build.sampler(config, data, batch_size, world.rank, world.size)
    if sampler.global_batch > len(data):
        log.warning(
            "the global batch of %d is larger than the %d training samples: each update repeats some",
            sampler.global_batch,
            len(data),
        )
    return config, feed, sampler


def _evaluator(config: Config, feed: build.Feed, world: World, precision: Precision) -> Evaluator | None:
    wanted = config.Global.eval_during_train
    if wanted is False or (wanted is None and "Eval" not in config.DataLoader):
        return None
    data = build.dataset(config, "Eval", class_names=feed.data.class_names, owner="the training data")
    batch_size = config.DataLoader["Eval"].sampler.arguments["batch_size"]
    evaluation = build.feed(config, "Eval", batch_size=batch_size, data=data)
    build.compare_parts(config, feed.data, evaluation.data)
    evaluator = Evaluator.of(config, evaluation, world, precision)
    sharding = config.DistributedStrategy.sharding
    if sharding is not None and sharding.stage == 3 and world.size > 1:  # no process has the weights that a graph needs
        evaluator.inference = Inference("dygraph")
    return evaluator


def _model(config: Config, feed: build.Feed, pretrained: Source | None) -> paddle.nn.Layer:
    """The model with its first weights, some of them frozen."""
    g = config.Global
    model = build.model(config)
    if pretrained is not None:
        try:
            report = loading.load_pretrained(
                model,
                pretrained,
                reset_head=g.finetune,
                allow=g.pretrained_allow,
                class_names=feed.data.class_names,
                position=g.position_embedding,
            )
        except CheckpointError as error:
            raise config.error(("Global", "pretrained_model"), str(error)) from error
        log.info("weights of %s: %s", g.pretrained_model, report)
    try:
        freeze(model, config.optimizer_options.freeze)
    except ConfigError as error:
        raise config.error(("Optimizer", "freeze"), str(error)) from error
    return model


def _optimizer(
    config: Config, model: paddle.nn.Layer, precision: Precision, sharding: Sharding | None
) -> tuple[Optimizer, paddle.nn.Layer]:
    """The optimizer, and the model in the run's precision."""
    optimizer = build.optimizer(
        config, model, precision.keeps_masters, owned=None if sharding is None else sharding.owned
    )
    if sharding is not None:
        optimizer = sharding.optimizer(optimizer)
        precision.agree_by(sharding.any)
    exact = {name: to_numpy(p) for name, p in optimizer.named} if precision.keeps_masters else {}
    model, optimizer.paddle_optimizer = precision.decorate(model, optimizer.paddle_optimizer)
    if exact:  # else Paddle would make the masters of weights that half precision has rounded
        optimizer.create_state()
        optimizer.assign_masters(exact)
    return optimizer, model


def _accumulation(
    config: Config,
    network: paddle.nn.Layer,
    optimizer: Optimizer,
    precision: Precision,
    sharding: Sharding | None,
    world: World,
) -> Accumulation | ShardedAccumulation:
    """The micro-batches, by whose end the gradients have travelled."""
    count, apart = config.Global.accum_steps, precision.accumulates_apart
    if sharding is not None and sharding.stage > 1:
        return sharding.accumulation(optimizer, count=count, apart=apart)
    return Accumulation(network, optimizer.trained, world, count=count, apart=apart)


def _prepare_blocks(config: Config, model: paddle.nn.Layer, world: World) -> None:
    recompute = config.DistributedStrategy.recompute
    if world.on_cpu:
        environment.use_huge_pages()
    if config.Global.to_static:
        blocks.compile_blocks(model)
    elif world.on_cpu and blocks.take_cpu_forms(config):
        cpu_forms.use(model)
    elif world.on_cpu and config.Global.cpu_forms is None and config.Task is not None:
        log.info(
            "task %s is not plsc's: layers compute by Paddle's plain kernels; if it calls neither paddle.grad nor "
            "backward with retain_graph, Global.cpu_forms: True makes a step on CPU quicker",
            config.Task.name,
        )
    if recompute is not None:
        blocks.recompute_blocks(
            model, interval=recompute.layerlist_interval, names=recompute.names, on_cpu=world.on_cpu
        )


def _schedule_steps(config: Config, steps_per_epoch: int) -> int:
    """Updates that the learning rate's schedule is made for."""
    g = config.Global
    return g.epochs * steps_per_epoch if g.epochs else g.max_train_step or 0  # the configuration has one of them


# -- for checkpoints and the log --------------------------------------------------------------


def _checkpointer(
    checkpoints: Checkpoints,
    parts: dict[str, Stateful],
    description: Description,
    sharding: Sharding | None,
    world: World,
) -> Checkpointer:
    """What saves the run: the first process, or each of those that own parameters its share."""
    if sharding is None:
        return Checkpointer(checkpoints, parts, description)
    return SharedCheckpointer(
        checkpoints,
        parts,
        description,
        shared=("model", "optimizer", "ema"),
        world=world,
        number=sharding.index if sharding.copy == 0 else None,
        count=sharding.degree,
    )


def _description(config: Config, model: paddle.nn.Layer, feed: build.Feed) -> Description:
    card = ModelCard(
        model=config.Model.name,
        spec=dataclasses.asdict(model.spec),
        preprocess=_preprocess(config, feed),
        class_names=feed.data.class_names,
        activation=build.activation(config),
        position=config.Global.position_embedding,
    )
    return Description(
        documents=card.documents(),
        texts={"config.yaml": run_directory.config_text(config)},
        metadata={"model": card.without_documents().to_metadata()},
    )


def _preprocess(config: Config, feed: build.Feed) -> Preprocess:
    """How pictures enter this model: as in DataLoader.Eval, else resized to what training saw."""
    evaluation = build.recipe_preprocess(config)
    if evaluation is not None:
        return evaluation
    height, width, channels = feed.loader.fetcher.fields()["image"].shape
    decoding = [part for part in config.DataLoader["Train"].transforms if part.name == "DecodeImage"]
    seen = Preprocess(resize=(height, width), rgb=all(part.arguments["to_rgb"] for part in decoding))
    n = feed.normalize
    if n is None:
        return dataclasses.replace(seen, mean=(0.0,) * channels, std=(1.0,) * channels)
    return dataclasses.replace(seen, scale=n.scale, mean=n.mean, std=n.std)


def _full_speed(config: Config, model: paddle.nn.Layer, precision: Precision, world: World) -> float | None:
    """Images a second at the devices' peak; None where it is unknown."""
    sizes = [(math.prod(p.shape), not p.stop_gradient) for p in model.parameters()]
    return utilisation.full_speed(
        model.spec,
        trained=sum(size for size, trained in sizes if trained) / sum(size for size, _ in sizes),
        tflops=config.Global.device_tflops or utilisation.device_peak(world.device, half=precision.active),
        devices=world.size,
    )


def _state_bytes(sharding: Sharding, optimizer: Optimizer, world: World) -> int:
    """What the optimizer keeps, on the process where it is most; it is made here and not in the first update."""
    optimizer.create_state()
    mine = paddle.to_tensor([optimizer.state_bytes()], dtype="int64")
    total = world.all_reduce(mine.clone()).numpy().item() // sharding.copies
    most = world.all_reduce_max(mine).numpy().item()
    log.info(
        "sharding: %s; the optimizer's state has %s bytes, at most %s on a process", sharding, f"{total:,}", f"{most:,}"
    )
    return most


def _describe(config: Config, model: paddle.nn.Layer, precision: Precision, progress: Progress, world: World) -> None:
    count = sum(int(np.prod(p.shape)) for p in model.parameters())
    frozen = sum(p.stop_gradient for p in model.parameters())
    log.info(
        "%s, %s parameters%s, on %d x %s in %s; global batch %d (%d x %d%s), %d updates, %d an epoch",
        config.Model.name,
        f"{count:,}",
        f" ({frozen} arrays frozen)" if frozen else "",
        world.size,
        world.device,
        precision,
        progress.global_batch,
        world.size,
        progress.global_batch // world.size,
        f" in {config.Global.accum_steps} parts" if config.Global.accum_steps > 1 else "",
        progress.total_steps,
        progress.steps_per_epoch,
    )
