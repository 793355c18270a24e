"""A parsed tree → Config: every section, and what concerns several keys; all problems together."""

from collections.abc import Iterable
from pathlib import Path

from plsc import components
from plsc.config import plsc_dialect, schema
from plsc.config.checker import Checker
from plsc.config.config import Config
from plsc.config.imports import run_imports as import_named
from plsc.config.rules import check_rules, takes_losses
from plsc.config.schema import Component, DataSection
from plsc.config.source import Source
from plsc.registry import (
    BATCH_TRANSFORMS,
    DATASETS,
    LOSSES,
    METRICS,
    MODELS,
    OPTIMIZERS,
    SAMPLERS,
    SCHEDULERS,
    TASKS,
    TRANSFORMS,
)

SECTIONS = (
    "Global",
    "DistributedStrategy",
    "FP16",
    "EMA",
    "Model",
    "Task",
    "Loss",
    "LRScheduler",
    "Optimizer",
    "DataLoader",
    "Metric",
    "Export",
)
_REQUIRED = ("Model", "Loss", "LRScheduler", "Optimizer", "DataLoader")


def check(
    source: Source, imports: Iterable[str] = (), *, for_training: bool = True, run_imports: bool = True
) -> Config:
    """Check a whole tree; the arguments are those of `plsc.config.load`.

    Raises:
        ConfigError: one with every problem.
    """
    components.register_all()
    not_run = import_named(source, imports, allowed=run_imports)
    c = Checker(source, for_training=for_training, not_run=not_run)
    tree = _translated(c, dict(source.tree))
    c.known_keys(tree, SECTIONS, (), kind="section")
    task = _task(c, tree.get("Task"))
    for key in _REQUIRED if for_training else ("Model",):
        if tree.get(key) is None and (key != "Loss" or task is None or takes_losses(task)):
            c.problem((key,), "the section is missing")

    def given(key: str, checked):
        """What `checked` makes of a section; None for one that is absent."""
        return checked(tree[key], (key,)) if tree.get(key) is not None else None

    config = Config(
        Global=c.section(schema.Global, tree.get("Global"), ("Global",)),
        DistributedStrategy=c.section(
            schema.DistributedStrategy, tree.get("DistributedStrategy"), ("DistributedStrategy",)
        ),
        FP16=given("FP16", lambda raw, path: c.section(schema.FP16, raw, path)),
        EMA=given("EMA", lambda raw, path: c.section(schema.EMA, raw, path)),
        Model=given("Model", lambda raw, path: c.named(MODELS, raw, path)),
        Task=task,
        Loss=_losses(c, tree.get("Loss")),
        LRScheduler=given("LRScheduler", lambda raw, path: c.named(SCHEDULERS, raw, path, default="Constant")),
        **_optimizer(c, tree.get("Optimizer")),
        DataLoader=_dataloaders(c, tree.get("DataLoader")),
        Metric=c.modes(METRICS, tree.get("Metric"), ("Metric",)),
        Export=c.section(schema.Export, tree.get("Export"), ("Export",)),
        source=source.frozen(),
    )
    if not c.problems:
        check_rules(c, config)
    c.raise_problems()
    return _run_directory(c, config).replace({"notes": c.notes})


def _run_directory(c: Checker, config: Config) -> Config:
    """The configuration with a file of PLSC's in a folder of its own: they share one output_dir."""
    path = ("Global", "output_dir")
    origin = c.source.origins.get(path)
    if origin is None or origin.file not in c.plsc_files:
        return config
    folder = str(Path(config.Global.output_dir) / config.Model.name)
    c.note(path, f"the run directory is {folder}, below output_dir as in PLSC, whose keys this file has")
    return config.replace({"Global.output_dir": folder})


def _translated(c: Checker, tree: dict) -> dict:
    """The tree with PLSC's sections under plsc's names, and its switches as the keys that they set."""
    origins = c.source.origins
    for alias, name in plsc_dialect.SECTION_ALIASES.items():
        if alias in tree:
            if name in tree:
                c.problem((alias,), f"is another name of {name}, which is given too; keep one")
            tree[name] = tree.pop(alias)
            origins.update({(name, *path[1:]): origin for path, origin in origins.items() if path[0] == alias})
    for path, (target, values) in plsc_dialect.SWITCHES.items():
        section, key = path
        if not isinstance(tree.get(section), dict) or key not in tree[section]:
            continue
        switch = tree[section][key]
        tree[section] = {k: v for k, v in tree[section].items() if k != key}
        if switch is not None and not isinstance(switch, bool):
            c.problem(path, f"expected true or false, got {switch!r}")
        elif switch is not None and (target[0] != "FP16" or isinstance(tree.get("FP16"), dict)):
            _set(c, tree, target, values[switch], path)
    return tree


def _set(c: Checker, tree: dict, target: tuple[str, str], value, source: tuple) -> None:
    """Set a key as another one says; lists are joined, and two values that differ are a problem."""
    section, key = target
    present = tree[section].get(key)
    if isinstance(value, list):
        value = [*(present or []), *(item for item in value if item not in (present or []))]
    elif present is not None and present != value:
        c.problem(source, f"sets {'.'.join(target)} to {value}, which is {present}; keep one")
    tree[section] = {**tree[section], key: value}
    c.source.origins.setdefault(target, c.source.origin(source))


def _task(c: Checker, raw) -> Component | None:
    """The task; classification where none is given, or where another one is absent that only training needs."""
    task = c.named(TASKS, raw, ("Task",), default="Classification")
    return c.named(TASKS, None, ("Task",), default="Classification") if c.is_absent("Task") else task


def _losses(c: Checker, raw) -> dict[str, tuple[Component, ...]]:
    """The losses by mode; a mode of which one is absent has none, since the others' sum is another loss."""
    modes = c.modes(LOSSES, raw, ("Loss",))
    return {mode: () if c.is_absent("Loss", mode) else items for mode, items in modes.items()}


def _optimizer(c: Checker, raw) -> dict:
    """The fields `Optimizer` and `optimizer_options` of a Config."""
    path, options = ("Optimizer",), schema.OptimizerOptions.model_fields
    keys = dict(c.mapping(raw, path))
    shared = {key: keys.pop(key) for key in list(keys) if key in options}
    section = c.section(schema.OptimizerOptions, shared, path)
    optimizer = c.named(OPTIMIZERS, keys, path, other_keys=options) if isinstance(raw, dict) else None
    return {"Optimizer": optimizer, "optimizer_options": section}


def _dataloaders(c: Checker, raw) -> dict[str, DataSection]:
    """The data by mode; Train is left out where a part of it is absent."""
    raw = c.mapping(raw, ("DataLoader",))
    c.known_keys(raw, ("Train", "Eval"), ("DataLoader",))
    sections = {m: _data(c, raw[m], ("DataLoader", m)) for m in ("Train", "Eval") if raw.get(m) is not None}
    return {mode: data for mode, data in sections.items() if data and not c.is_absent("DataLoader", mode)}


def _data(c: Checker, raw, path: tuple) -> DataSection | None:
    """DataLoader.Train or DataLoader.Eval."""
    raw = c.mapping(raw, path, empty_ok=False)
    c.known_keys(raw, ("dataset", "sampler", "loader"), path)
    if raw and not raw.get("dataset"):
        c.problem((*path, "dataset"), "is missing")
        return None
    dataset_path = (*path, "dataset")
    keys = dict(c.mapping(raw.get("dataset"), dataset_path))
    transforms = _list(c, keys, "transform_ops", TRANSFORMS, dataset_path)
    batch_transforms = _list(c, keys, "batch_transform_ops", BATCH_TRANSFORMS, dataset_path)
    dataset = c.named(DATASETS, keys, dataset_path)
    sampler = c.named(SAMPLERS, raw.get("sampler"), (*path, "sampler"), default="DistributedBatchSampler")
    loader = c.section(schema.Loader, raw.get("loader"), (*path, "loader"))
    if dataset is None or sampler is None:
        return None
    return DataSection(dataset, transforms, batch_transforms, sampler, loader, path)


def _list(c: Checker, keys: dict, key: str, registry, path: tuple) -> tuple[Component, ...]:
    """Take a list of components out of a section's keys, under its name or its alias."""
    aliases = [alias for alias, name in plsc_dialect.section(path).aliases.items() if name == key and alias in keys]
    for alias in aliases:
        if key in keys:
            c.problem((*path, alias), f"is another name of {key}, which is given too; keep one")
    used = key if key in keys or not aliases else aliases[0]
    raw = keys.pop(used, None)
    for alias in aliases:
        keys.pop(alias, None)
    return c.items(registry, raw, (*path, used))
