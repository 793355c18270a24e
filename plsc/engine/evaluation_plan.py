"""What is to be evaluated: every combination of weights, data and resolution, with its configuration."""

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plsc import places
from plsc.api import load_config
from plsc.config import Component, Config
from plsc.errors import CheckpointError, ConfigError, DataError, PlscError
from plsc.registry import DATASETS, METRICS

# endings of shards → the data set that reads them
_SHARDS = {".tar": "WebDataset", ".tfrecord": "TFRecord", ".parquet": "Parquet"}
_PIXELS = ("size", "resize_short", "keep_above")  # arguments of transforms that follow the resolution


@dataclass(frozen=True)
class Request:
    """What is asked for. Attributes: as the arguments of plsc.engine.evaluation.evaluate_all."""

    weights: Sequence[str | Path]
    config: str | Path | Mapping[str, Any] | Config | None
    overrides: Sequence[str] | Mapping[str, Any]
    imports: Sequence[str]
    data: Sequence[str | Path] | Mapping[str, str | Path]
    resolutions: Sequence[int]
    ema: bool
    metrics: Sequence[str]
    real: str | Path | None
    verify: bool = True


@dataclass(frozen=True)
class Row:
    """One measurement to be made.

    Attributes:
        weights, recipe, data: by name. resolution: of the model, in pixels. resized: the one that was asked for.
        config: None where it could not be made; `error` is the reason.
        verify: whether a checkpoint's files are compared with their checksums.
    """

    weights: str
    recipe: str | None
    data: str | None
    resolution: int | tuple[int, int] | None
    resized: int | None
    config: Config | None = None
    error: str | None = None
    verify: bool = True


def plan(request: Request) -> list[Row]:
    """The rows. What cannot be configured is noted in its row; where there is only one, it is raised."""
    data = request.data if isinstance(request.data, Mapping) else {str(path): path for path in request.data}
    no_choice: list[None] = [None]  # what is not asked for is the configuration's
    combinations = [
        (weights, named, pixels)
        for weights in request.weights or no_choice
        for named in data.items() or no_choice
        for pixels in request.resolutions or no_choice
    ]
    rows = []
    for weights, named, pixels in combinations:
        try:
            rows.append(_row(request, weights, named, pixels))
        except PlscError as error:
            if len(combinations) == 1:
                raise
            name = None if named is None else named[0]
            rows.append(Row(str(weights or ""), _name_of(request.config), name, pixels, pixels, error=str(error)))
    return rows


def _row(request: Request, weights: str | Path | None, named: tuple[str, str | Path] | None, pixels: int | None) -> Row:
    config, recipe = _configuration(request, weights)
    weights = weights or config.Global.pretrained_model or config.Global.checkpoint
    if not weights:
        raise CheckpointError(
            "no weights to evaluate are given: name them with --weights PATH, or with -c RECIPE and "
            "-o Global.pretrained_model=PATH"
        )
    if places.exported_model(weights) is None:
        places.weights_file(weights, "ema" if request.ema else "model")  # missing ones are reported before data is read
    if named is not None:
        config, name = _on_data(request, config, Path(named[1])), named[0]
    elif "Eval" in config.DataLoader:
        name = config.DataLoader["Eval"].dataset.name
    else:
        raise ConfigError(f"{recipe}: DataLoader.Eval is missing: there is no data to evaluate on")
    if pixels is not None:
        config = at_resolution(config, pixels)
    config = _with_metrics(config, request.metrics, request.real)
    return Row(
        str(weights), recipe, name, config.Model.arguments.get("img_size"), pixels, config, verify=request.verify
    )


def _name_of(config: Any) -> str | None:
    return str(config) if isinstance(config, (str, Path)) else None


def _configuration(request: Request, weights: str | Path | None) -> tuple[Config, str | None]:
    """The configuration that is asked for, else the one beside the weights, whose imports run no code; and its name."""
    if isinstance(request.config, Config):
        if request.overrides or request.imports:
            raise ConfigError("overrides and imports go with a recipe, not with a Config that was checked already")
        return request.config, request.config.source.name
    if request.config is not None:
        config = load_config(request.config, request.overrides, request.imports, for_training=False)
        return config, _name_of(request.config) or config.source.name
    recipe = _recipe_beside(weights)
    return (
        load_config(recipe, request.overrides, request.imports, for_training=False, run_imports=False),
        str(recipe),
    )


def _recipe_beside(weights: str | Path | None) -> Path:
    if not weights:
        raise ConfigError("nothing to evaluate is given: give --weights of a checkpoint that plsc wrote, or -c RECIPE")
    recipe = places.recipe(weights)
    if recipe is None:
        if places.exported_model(weights) is None:
            places.weights_file(weights)  # raises where there are none
        raise ConfigError(f"{weights}: there is no config.yaml beside it; give -c RECIPE")
    return recipe


def _on_data(request: Request, config: Config, path: Path) -> Config:
    """The configuration with other data in DataLoader.Eval."""
    if path.suffix in (".yaml", ".yml"):
        other = load_config(path, imports=request.imports, for_training=False)
        if "Eval" not in other.DataLoader:
            raise ConfigError(f"{path}: the recipe has no DataLoader.Eval")
        return config.replace({"DataLoader.Eval": other.DataLoader["Eval"]})
    if "Eval" not in config.DataLoader:
        raise ConfigError(
            f"{path}: the recipe has no DataLoader.Eval, by which pictures are prepared; give a recipe's .yaml instead"
        )
    return config.replace({"DataLoader.Eval.dataset": _dataset_at(path, config.DataLoader["Eval"].dataset)})


def _dataset_at(path: Path, instead_of: Component) -> Component:
    """A folder of class folders, shards or a list file as a data set; a list is read as the one it replaces."""
    place, at = path.expanduser().absolute(), ("DataLoader", "Eval", "dataset")
    for ending, name in _SHARDS.items():
        if place.name.endswith(ending) or (place.is_dir() and any(place.glob(f"*{ending}"))):
            files = str(place / f"*{ending}") if place.is_dir() else str(place)
            defaults = {key: p.default for key, p in DATASETS.get(name).parameters().items()}
            return Component(name, {**defaults, "files": files}, at)
    if place.is_dir():
        return Component("ImageFolder", {"root": str(place)}, at)
    if not place.is_file():
        raise ConfigError(f"{path}: no such folder, list file or recipe (looked in {Path.cwd()})")
    kept = {}
    if instead_of.name == "ImageNetDataset":
        kept = {key: value for key, value in instead_of.arguments.items() if key != "slice"}
    where = {"image_root": str(place.parent), "cls_label_path": str(place)}
    return Component("ImageNetDataset", {**kept, **where}, at)


def at_resolution(config: Config, pixels: int) -> Config:
    """The configuration at another image size; the evaluation's resize and crop change in proportion.

    Raises:
        ConfigError: the model has no image size, or one that is not square.
    """
    size = config.Model.arguments.get("img_size")
    if size is None:
        raise ConfigError(f"{config.Model.name} has no img_size; change the transforms of DataLoader.Eval by -o")
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise config.error(("Model", "img_size"), f"is {[height, width]}; another resolution needs a square one")
    changes: dict[str, Any] = {"Model.img_size": pixels}
    if "Eval" in config.DataLoader:
        changes["DataLoader.Eval.dataset.transform_ops"] = [
            _in_proportion(part, pixels, height) for part in config.DataLoader["Eval"].transforms
        ]
    return config.replace(changes)


def _in_proportion(transform: Component, new: int, old: int) -> Component:
    from plsc.data.preprocess import enlarged

    arguments = {
        key: enlarged(value, new, old) if key in _PIXELS else value for key, value in transform.arguments.items()
    }
    return dataclasses.replace(transform, arguments=arguments)


def _with_metrics(config: Config, names: Sequence[str], real: str | Path | None) -> Config:
    """The configuration with further metrics after the recipe's."""
    wanted: list[tuple[str, dict[str, Any]]] = [(name, {}) for name in names]
    if real is not None:
        file = Path(real).expanduser().absolute()
        if not file.is_file():
            raise DataError(f"{real}: no such file (ImageNet-ReaL's real.json; looked in {Path.cwd()})")
        wanted.insert(0, ("RealAcc", {"labels": str(file)}))
    if not wanted:
        return config
    # a recipe without metrics has TopkAcc
    chosen = {part.name: part for part in config.Metric["Eval"] or [_metric("TopkAcc", {})]}
    for name, given in wanted:
        entry = METRICS.get(name)
        before = chosen[entry.name].arguments if entry.name in chosen else {}
        chosen[entry.name] = _metric(name, {**before, **given})
    return config.replace({"Metric.Eval": list(chosen.values())})


def _metric(name: str, given: dict[str, Any]) -> Component:
    """A metric with its defaults. Raises ConfigError where an argument is missing."""
    entry = METRICS.get(name)
    defaults = {key: p.default for key, p in entry.parameters().items()}
    missing = [key for key, default in defaults.items() if default is inspect.Parameter.empty and key not in given]
    if missing:
        how = "give real (--real FILE)" if entry.name == "RealAcc" else "list it in the recipe's Metric.Eval"
        raise ConfigError(f"metric {name}: needs {', '.join(missing)}; {how}")
    return Component(entry.name, {**defaults, **given}, ("Metric", "Eval"))
