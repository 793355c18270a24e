"""What `plsc eval` measures: every combination of weights, data and resolution, each with its configuration."""

import dataclasses
import json
from pathlib import Path

from plsc import places
from plsc.cli.common import load_config, weights_of
from plsc.cli.results import Row
from plsc.errors import ConfigError, PlscError
from plsc.registry import METRICS

# endings of shards → the data set that reads them
_SHARDS = {".tar": "WebDataset", ".tfrecord": "TFRecord", ".parquet": "Parquet"}


def plan(arguments) -> list:
    """(row, its configuration) of every combination.

    What cannot be configured is noted in its row, beside None; where there is only one row, it is raised.
    """
    combinations = [
        (weights, data, pixels)
        for weights in arguments.weights or [None]
        for data in arguments.data or [None]
        for pixels in arguments.resolution or [None]
    ]
    planned = []
    for weights, data, pixels in combinations:
        row = Row(
            {
                "weights": weights,
                "ema": arguments.ema,
                "config": arguments.config,
                "data": data,
                "resolution": pixels,
            }
        )
        config = None
        try:
            config = _configured(row.about, arguments)
        except PlscError as error:
            if len(combinations) == 1:
                raise
            row.error = str(error)
        planned.append((row, config))
    return planned


def _configured(about: dict, arguments):
    """The configuration of one row; what the options left open about it is filled in."""
    if arguments.config:
        about["config"], overrides = arguments.config, arguments.override
    else:
        about["config"] = _recipe_of(about["weights"])
        overrides = [f"Global.output_dir={json.dumps(_run_directory(about['config']))}", *arguments.override]
    config = load_config(about["config"], overrides)
    about["weights"] = weights_of(about["weights"], config, "evaluate")
    if about["data"] is not None:
        about["data"] = _set_data(config, about["data"])
    elif "Eval" in config.DataLoader:
        about["data"] = config.DataLoader["Eval"].dataset.name
    else:
        raise ConfigError(f"{about['config']}: DataLoader.Eval is missing: there is nothing to evaluate on")
    if about["resolution"] is not None:
        _set_resolution(config, about["resolution"])
    about["resolution"] = config.Model.arguments["img_size"]
    _add_metrics(config, arguments)
    return config


def _recipe_of(weights: str | None) -> str:
    """The config.yaml beside a checkpoint."""
    if not weights:
        raise ConfigError("give -c RECIPE, or --weights of a checkpoint that plsc wrote")
    if not Path(weights).expanduser().exists():
        raise ConfigError(f"{weights}: no such file or folder (looked in {Path.cwd()})")
    recipe = places.recipe(weights)
    if recipe is None:
        raise ConfigError(f"{weights}: there is no config.yaml beside it; give -c RECIPE")
    return str(recipe)


def _run_directory(recipe: str) -> str:
    """The run that a checkpoint's config.yaml is of, wherever it lies by now."""
    return str(places.run_directory(recipe) or Path(recipe).absolute().parent)


def _set_data(config, text: str) -> str:
    """Evaluate on other data, --data's NAME=PATH or PATH; returns what to call it."""
    name, equals, path = text.partition("=")
    if not equals or Path(text).exists():
        name = path = text
    if path.endswith((".yaml", ".yml")):
        found = load_config(path, [])
        if "Eval" not in found.DataLoader:
            raise ConfigError(f"--data {text}: the recipe has no DataLoader.Eval")
        config.DataLoader["Eval"] = found.DataLoader["Eval"]
        return name
    if "Eval" not in config.DataLoader:
        raise ConfigError(f"--data {text}: the recipe has no DataLoader.Eval, which says how pictures are prepared")
    section = config.DataLoader["Eval"]
    config.DataLoader["Eval"] = dataclasses.replace(section, dataset=_dataset_at(path, section.dataset))
    return name


def _dataset_at(path: str, instead_of):
    """A folder of class folders or a list file as a dataset component; a list is read as the one it replaces."""
    from plsc.config.schema import Component

    place = Path(path).expanduser()
    for ending, name in _SHARDS.items():
        files = str(place / f"*{ending}") if place.is_dir() else str(place)
        if place.name.endswith(ending) or (place.is_dir() and any(place.glob(f"*{ending}"))):
            from plsc.registry import DATASETS

            defaults = {key: p.default for key, p in DATASETS.get(name).parameters().items()}
            return Component(name, {**defaults, "files": files}, ("--data",))
    if place.is_dir():
        return Component("ImageFolder", {"root": str(place)}, ("--data",))
    if not place.is_file():
        raise ConfigError(f"--data {path}: no such folder, list file or recipe (looked in {Path.cwd()})")
    kept = {}
    if instead_of.name == "ImageNetDataset":
        kept = {key: value for key, value in instead_of.arguments.items() if key != "slice"}
    where = {"image_root": str(place.parent), "cls_label_path": str(place)}
    return Component("ImageNetDataset", {**kept, **where}, ("--data",))


def _set_resolution(config, pixels: int) -> None:
    """Change the model's image size, and the evaluation's resize and crop in proportion."""
    from plsc.data.preprocess import enlarged
    from plsc.models.layers import pair

    old, width = pair(config.Model.arguments["img_size"])
    if old != width:
        raise ConfigError(f"--resolution needs a square Model.img_size, not {[old, width]}; use -o overrides")
    config.Model.arguments["img_size"] = pixels
    for part in config.DataLoader["Eval"].transforms:
        for name in ("size", "resize_short", "keep_above"):
            if name in part.arguments:
                part.arguments[name] = enlarged(part.arguments[name], pixels, old)


def _add_metrics(config, arguments) -> None:
    """Those that the options ask for, behind the recipe's."""
    from plsc.config.schema import Component

    wanted = [("RealAcc", {"labels": arguments.real})] if arguments.real else []
    wanted += [("PerClassAccuracy", {})] if arguments.per_class else []
    wanted += [("ConfusionMatrix", {})] if arguments.confusion else []
    wanted += [(name, {}) for name in arguments.metrics]
    chosen = {part.name: part for part in config.Metric["Eval"]}
    if wanted and not chosen:  # as where nothing is said
        wanted.insert(0, ("TopkAcc", {}))
    for asked, said in wanted:
        entry = METRICS.get(asked)
        given = {**(chosen[entry.name].arguments if entry.name in chosen else {}), **said}
        needed = [name for name, p in entry.parameters().items() if p.default is p.empty and name not in given]
        if needed:
            how = "--real FILE" if entry.name == "RealAcc" else "list it in the recipe's Metric.Eval"
            raise ConfigError(f"--metrics {asked}: needs {', '.join(needed)}; {how}")
        chosen[entry.name] = Component(entry.name, given, ("Metric", "Eval"))
    config.Metric["Eval"] = list(chosen.values())
