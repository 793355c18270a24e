"""Evaluation of weights on data: one measurement, or every combination of several. Importing it imports no Paddle.

Every sample counts exactly once, on any number of processes.
"""

import logging
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from plsc import places
from plsc.config import Config
from plsc.engine.evaluation_plan import Request, Row, plan
from plsc.engine.run import joined
from plsc.errors import CheckpointError, ConfigError, PlscError

if TYPE_CHECKING:
    import numpy as np

    from plsc import build
    from plsc.engine.distributed import World
    from plsc.engine.evaluator import Evaluator
    from plsc.model_card import ModelCard

log = logging.getLogger("plsc")

Recipe = str | Path | Mapping[str, Any] | Config
Part = Literal["model", "ema"]  # of a checkpoint


@dataclass(frozen=True)
class ClassCounts:
    """Samples of each class [C], and how many of them are right [C]."""

    samples: "np.ndarray"
    right: "np.ndarray"


@dataclass(frozen=True)
class Evaluation(Mapping[str, float]):
    """One measurement. As a mapping it has the figures: result["top1"], dict(result).

    Attributes:
        weights, data: by name. ema: whether averaged weights were measured.
        config: the recipe's path or name. resolution: of the model, in pixels.
        figures: name → number. fractions: names of the figures that are fractions of 1, shown in percent.
        error: why there are no figures.
        class_names: of the data set, else of the weights; None where neither has any.
        classes: counts of each class, with the metric PerClassAccuracy.
        confusion: [C, C] counts, a row a true class and a column a predicted one, with the metric ConfusionMatrix.
    """

    weights: str
    ema: bool
    config: str | None
    data: str | None
    resolution: int | tuple[int, int] | None
    figures: Mapping[str, float] = field(default_factory=dict)
    fractions: frozenset[str] = frozenset()
    error: str | None = None
    class_names: list[str] | None = None
    classes: ClassCounts | None = None
    confusion: "np.ndarray | None" = None

    def __getitem__(self, name: str) -> float:
        return self.figures[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.figures)

    def __len__(self) -> int:
        return len(self.figures)

    @property
    def about(self) -> dict[str, Any]:
        """What was measured: weights, ema, config, data, resolution."""
        return {name: getattr(self, name) for name in ("weights", "ema", "config", "data", "resolution")}

    def to_dict(self) -> dict[str, Any]:
        """All of it but the classes, plain; a figure that is not finite, for which JSON has no value, is None."""
        figures = {name: value if math.isfinite(value) else None for name, value in self.figures.items()}
        return {**self.about, **figures, **({"error": self.error} if self.error else {})}


def evaluate(
    weights: str | Path | None = None,
    config: Recipe | None = None,
    *,
    overrides: Sequence[str] | Mapping[str, Any] = (),
    imports: Sequence[str] = (),
    data: str | Path | None = None,
    resolution: int | None = None,
    ema: bool = False,
    metrics: Sequence[str] = (),
    real: str | Path | None = None,
    class_names: str | Path | None = None,
    verify: bool = True,
) -> Evaluation:
    """Measure weights on the data of DataLoader.Eval.

    Args:
        weights: a run directory, a checkpoint, anybody's weights or an export; by default the configuration's.
        config: a recipe's path or name, a dict, or a Config; by default the one that the checkpoint was trained with.
        overrides, imports: as in plsc.load_config.
        data: instead of DataLoader.Eval's data set a folder of class folders, shards, a list file (whose paths count
            from its folder), or a recipe's .yaml, of which the whole DataLoader.Eval is taken.
        resolution: another image size, in pixels; resize and crop of DataLoader.Eval change in proportion.
        ema: the averaged weights of a checkpoint.
        metrics: names of further ones, such as ECE, PerClassAccuracy or ConfusionMatrix.
        real: ImageNet-ReaL's real.json; adds the metric RealAcc.
        class_names: a file with the name of a class a line, instead of those of the data set or the weights.
        verify: compare a plsc checkpoint's files with their checksums.

    Raises:
        PlscError: something cannot be read, or does not fit; weights must fit the model as they are.

    Example:
        result = plsc.evaluate("output/digits")
        print(result["top1"], result["loss"], result["samples"])
        result = plsc.evaluate("output/mine", data="pictures/new", metrics=["PerClassAccuracy"])
        print(result.classes.right / result.classes.samples)
    """
    [row] = evaluate_all(
        [] if weights is None else [weights],
        config,
        overrides=overrides,
        imports=imports,
        data=[] if data is None else [data],
        resolutions=[] if resolution is None else [resolution],
        ema=ema,
        metrics=metrics,
        real=real,
        class_names=class_names,
        verify=verify,
    )
    return row


def evaluate_all(
    weights: Sequence[str | Path] = (),
    config: Recipe | None = None,
    *,
    overrides: Sequence[str] | Mapping[str, Any] = (),
    imports: Sequence[str] = (),
    data: Sequence[str | Path] | Mapping[str, str | Path] = (),
    resolutions: Sequence[int] = (),
    ema: bool = False,
    metrics: Sequence[str] = (),
    real: str | Path | None = None,
    class_names: str | Path | None = None,
    verify: bool = True,
    on_row: Callable[[list[Evaluation]], None] | None = None,
) -> list[Evaluation]:
    """Measure every combination of weights, data sets and resolutions.

    Args:
        weights, data, resolutions: none, one or several of what `evaluate` takes; a mapping gives the data sets names.
        config, overrides, imports, ema, metrics, real, class_names, verify: as in `evaluate`, for all rows.
        on_row: called by the first process after each row, with all rows so far.

    Returns:
        A row each. One that fails has an `error` instead of figures, and the others are measured all the same.

    Raises:
        PlscError: the only row fails, or no row can be configured; or, of several processes, any row while it is
            measured.

    Example:
        for row in evaluate_all(["output/a", "output/b"], resolutions=[224, 384]):
            print(row.weights, row.resolution, row.error or row["top1"])
    """
    request = Request(weights, config, overrides, imports, data, resolutions, ema, metrics, real, verify)
    rows = plan(request)
    results = [Evaluation(row.weights, ema, row.recipe, row.data, row.resolution, error=row.error) for row in rows]
    config = next((row.config for row in rows if row.config is not None), None)
    if config is None:
        raise ConfigError("\n".join(dict.fromkeys(row.error for row in rows if row.error)))
    # failures of a process are written where the others see them, and not into a run that is none of the weights'
    runs = filter(None, (places.run_directory(row.weights) for row in rows))
    folder = next(runs, None) or Path(tempfile.gettempdir(), f"plsc-{os.getuid()}")
    with joined(config.replace({"Global.output_dir": str(folder)})) as world:
        for number, row in enumerate(rows):
            if len(rows) > 1:
                facts = (row.weights, row.data, row.resolution)
                shown = ", ".join(str(fact) for fact in facts if fact is not None)
                log.info("row %d of %d: %s", number + 1, len(rows), shown)
            results[number] = _measured(row, results[number], world, class_names, alone=len(rows) == 1)
            if results[number].error is not None:
                log.error("%s", results[number].error)
            if world.is_first and on_row is not None:
                on_row(results[: number + 1])
    return results


def _measured(
    row: Row, result: Evaluation, world: "World", class_names: str | Path | None, *, alone: bool
) -> Evaluation:
    """The result with its figures, or with what the row failed of.

    Errors are raised where there is no other row, and where another process may be waiting during this one.
    """
    prepared, error = None, row.error
    if row.config is not None:
        try:
            prepared = _prepared(row, row.config, world, class_names, part="ema" if result.ema else "model")
        except PlscError as problem:
            if alone:
                raise
            error = str(problem)
    try:
        error = _common_failure(world, error)
        if prepared is None or error is not None:
            return replace(result, error=error)
        return prepared.measured(result)
    except PlscError as problem:
        if alone or world.size > 1:
            raise
        return replace(result, error=str(problem))
    finally:
        if prepared is not None:
            prepared.evaluator.loader.close()


def _common_failure(world: "World", error: str | None) -> str | None:
    """Why any process could not prepare a row, the same on all of them; None where all could."""
    import paddle

    if world.size == 1:
        return error
    if world.on_cpu:
        world.barrier()
    failed = world.all_reduce_max(paddle.to_tensor([int(error is not None)])).item()
    if failed and error is None:
        return "another process could not prepare it; the reason is in that process's output"
    return error


@dataclass(frozen=True)
class _Prepared:
    """A row up to its first batch."""

    evaluator: "Evaluator"
    network: Any
    class_names: list[str] | None

    def measured(self, result: Evaluation) -> Evaluation:
        """The result with its figures."""
        from plsc.metrics import ConfusionMatrix, PerClassAccuracy

        figures, metrics = self.evaluator.run(self.network), self.evaluator.metrics
        counts = [ClassCounts(m.samples, m.right) for m in metrics if isinstance(m, PerClassAccuracy)]
        matrices = [m.matrix for m in metrics if isinstance(m, ConfusionMatrix)]
        return replace(
            result,
            figures=figures or {},
            fractions=frozenset(name for metric in metrics for name in metric.names),
            class_names=self.class_names,
            classes=next(iter(counts), None),
            confusion=next(iter(matrices), None),
        )


def _prepared(row: Row, config: Config, world: "World", class_names: str | Path | None, *, part: Part) -> _Prepared:
    """Everything up to the first batch, weights before data."""
    from plsc import build
    from plsc.data.class_names import read_class_names
    from plsc.engine.evaluator import Evaluator
    from plsc.engine.precision import Precision

    for note in config.notes:
        log.info("%s", note)
    exported = places.exported_model(row.weights) is not None
    subject = _exported(row, config, part, world) if exported else _loaded(row, config, part)
    config = subject.config
    names = None if class_names is None else read_class_names(class_names, build.class_num(config))
    data = build.dataset(config, "Eval", class_names=subject.distinct_names, owner="the weights")
    batch_size = config.DataLoader["Eval"].sampler.arguments["batch_size"]
    feed = build.feed(config, "Eval", batch_size=batch_size, data=data)
    subject.check_data(feed)
    precision, network = Precision.of(config, world), subject.network
    if exported:
        subject.check_outputs(feed)
    else:
        network, _ = precision.decorate(network)
    evaluator = Evaluator.of(config, feed, world, precision, weights_activation=subject.card.activation)
    return _Prepared(evaluator, network, names or feed.data.class_names or subject.card.class_names)


@dataclass(frozen=True)
class _Subject:
    """What is measured, what its weights state, and the configuration with their number of classes."""

    path: Path
    network: Any
    card: "ModelCard"
    config: Config

    @property
    def distinct_names(self) -> list[str] | None:
        """The classes' names, by which data is numbered; None where some are there twice, or there are none."""
        names = self.card.class_names
        return names if names and len(set(names)) == len(names) else None

    def check_data(self, feed: "build.Feed") -> None:
        """Raise where the data's numbers may mean other classes; warn where pictures are prepared otherwise."""
        from plsc import build, loading

        ours, theirs, wanted = feed.data.class_names, self.card.class_names, build.class_num(self.config)
        if ours and len(ours) < wanted and ours != theirs:
            raise ConfigError(
                f"the data's {len(ours)} classes ({', '.join(ours[:3])}, …) are numbered from 0, but the model has "
                f"{wanted}: its classes would be taken for others; evaluate with a list file that has the model's "
                "numbers, or all folders"
            )
        loading.warn_of_preprocess(self.path, self.card.preprocess, feed.preprocess, used="the recipe's is measured")

    def check_outputs(self, feed: "build.Feed") -> None:
        """Raise CheckpointError where an export has other classes than the configuration."""
        import paddle

        from plsc import build

        height, width, channels = feed.loader.fetcher.fields()["image"].shape
        classes = self.network(paddle.zeros([1, channels, height, width])).shape[1]
        wanted = build.class_num(self.config)
        if classes != wanted:
            raise CheckpointError(f"{self.path}: has {classes} classes, Model.class_num is {wanted}")


def _loaded(row: Row, config: Config, part: Part) -> _Subject:
    from plsc import build, loading
    from plsc.models.init import undrawn
    from plsc.weights import read

    source = read(row.weights, part, verify=row.verify)
    config = build.with_class_num(config, source.card.spec.get("class_num"))
    with undrawn():
        network = build.model(config)
    report = loading.load_pretrained(
        network,
        source,
        strict=True,
        resized=row.resized is not None,
        position=loading.position_method(config, source),
    )
    for name, how in report.adapted.items():
        log.info("%s: %s", name, how)
    card = replace(source.card, preprocess=loading.own_preprocess(source, row.resized))
    return _Subject(source.path, network, card, config)


def _exported(row: Row, config: Config, part: Part, world: "World") -> _Subject:
    import paddle

    from plsc import build, predictor
    from plsc.engine.evaluator import ExportedNetwork

    # onnxruntime does not know the device that Paddle was given
    device = "cpu" if world.on_cpu else f"auto:{paddle.get_device().partition(':')[2] or 0}"
    exported = predictor.load_predictor(row.weights, weights=part, img_size=row.resized, device=device)
    config = build.with_class_num(config, exported.card.spec.get("class_num"))
    return _Subject(exported.path, ExportedNetwork(exported.run), exported.card, config)
