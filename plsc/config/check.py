"""A parsed tree → Config: every key known, every value of its type, all problems told together."""

import inspect
import re
import types
import typing
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from plsc import components
from plsc.config import schema
from plsc.config.coerce import coerce
from plsc.config.config import Config
from plsc.config.imports import run_imports as import_named
from plsc.config.schema import Component, DataSection
from plsc.config.source import Source
from plsc.errors import ConfigError
from plsc.registry import (
    BATCH_TRANSFORMS,
    DATASETS,
    LOSSES,
    METRICS,
    MODELS,
    OPTIMIZERS,
    SAMPLERS,
    SCHEDULERS,
    TRANSFORMS,
    Entry,
    KeysOf,
    Registry,
    keys_of,
    list_of,
    nearest,
)

REQUIRED = inspect.Parameter.empty


def describe(annotation) -> str:
    """A type as a user reads it: "a number", "true or false or null", …"""
    if typing.get_origin(annotation) is typing.Annotated:
        return describe(typing.get_args(annotation)[0])
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(describe(a) for a in arguments))
    if origin is typing.Literal:
        return "one of " + ", ".join(map(str, arguments)) if len(arguments) > 1 else str(arguments[0])
    if origin is list or (origin is tuple and arguments and arguments[-1] is Ellipsis):
        return f"a list of {_plural(arguments[0])}"
    if origin is tuple:
        return f"{len(arguments)} values ({', '.join(describe(a) for a in arguments)})"
    if origin is dict:
        return "a mapping"
    names = {float: "a number", int: "a whole number", bool: "true or false", str: "a text", type(None): "null"}
    names.update({list: "a list", tuple: "a list", dict: "a mapping", typing.Any: "anything"})
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _plural(annotation) -> str:
    return {float: "numbers", int: "whole numbers", str: "texts"}.get(annotation, describe(annotation))


def only_training_needs(path: tuple) -> bool:
    """Whether evaluation, prediction and export do without what stands at a path."""
    return path[0] in ("LRScheduler", "Optimizer", "Loss") or path[:2] in (("DataLoader", "Train"), ("Metric", "Train"))


class _Checker:
    def __init__(self, source: Source, for_training: bool, not_run: list[str]):
        self.source, self.for_training, self.not_run = source, for_training, not_run
        self.problems: list[str] = []
        self.notes: list[str] = list(source.notes)
        self.absent: list[tuple] = []  # where components stand that are not there, and only training needs

    def problem(self, path: tuple, text: str):
        self.problems.append(self.source.located(path, text))

    def note(self, path: tuple, text: str):
        self.notes.append(self.source.located(path, text))

    # -- keys and values ------------------------------------------------------------------

    def mapping(self, raw, path: tuple, *, empty_ok: bool = True) -> dict:
        if raw is None and empty_ok:
            return {}
        if not isinstance(raw, dict):
            self.problem(path, f"expected keys and values, got {raw!r}")
            return {}
        return raw

    def value(self, value, annotation, path: tuple):
        """The value in its annotated type, or REQUIRED (with a problem noted) where it does not fit."""
        value = coerce(value, annotation)
        try:
            return TypeAdapter(annotation).validate_python(value, strict=True)
        except ValidationError as error:
            text = f"expected {describe(annotation)}, got {value!r}"
            limits = [e["msg"] for e in error.errors() if e["type"].startswith(("greater", "less", "finite"))]
            if limits:
                text = f"got {value!r}; {limits[0][0].lower()}{limits[0][1:]}"
            choices = typing.get_args(annotation) if typing.get_origin(annotation) is typing.Literal else ()
            close = nearest(value, choices) if isinstance(value, str) else None
            self.problem(path, text + (f"; did you mean {close}?" if close else ""))
            return REQUIRED

    def fields(
        self, raw: dict, fields: dict, path: tuple, *, owner: str, beside=(), aliases=(), inert=(), refused=()
    ) -> dict:
        """Check a mapping against {key: (annotation, default)}; returns every key with its value."""
        aliases, inert, refused = dict(aliases), dict(inert), dict(refused)
        values = {}
        for key, value in raw.items():
            here = (*path, key)
            target = aliases.get(key, key)
            if target in fields:
                if target in values or (target != key and target in raw):
                    self.problem(here, f"is another name of {target}, which is given too; keep one")
                    continue
                annotation = fields[target][0]
                if isinstance(annotation, type) and issubclass(annotation, BaseModel):
                    values[target] = self.section(annotation, value, here)
                elif _section_of(annotation) and value is not None:
                    values[target] = self.section(_section_of(annotation), value, here)
                elif list_of(annotation):
                    values[target] = self.items(list_of(annotation), value, here)
                elif keys_of(annotation) and value is not None:
                    values[target] = self.arguments(keys_of(annotation), value, here)
                else:
                    values[target] = self.value(value, annotation, here)
            elif key in inert:
                self.note(here, f"accepted, without effect: {inert[key]}")
            elif key in refused:
                self.problem(here, f"not offered: {refused[key]}")
            else:
                known = [*fields, *beside]
                close = nearest(key, [*known, *aliases])
                hint = f"did you mean {close}?" if close else f"it accepts {', '.join(known) or 'no keys'}"
                self.problem(here, f"unknown key of {owner}; {hint}")
        for key, (_, default) in fields.items():
            if key not in values:
                if default is REQUIRED:
                    self.problem((*path, key), f"is missing; {owner} requires it")
                values[key] = default() if callable(default) else default
        return values

    def section(self, cls, raw, path: tuple):
        """A schema section from its mapping."""
        fields = {}
        for name, info in cls.model_fields.items():
            annotation = info.annotation
            for constraint in info.metadata:
                annotation = typing.Annotated[annotation, constraint]
            default = info.default_factory or info.default
            fields[name] = (annotation, REQUIRED if info.is_required() else default)
        raw = dict(self.mapping(raw, path))
        self._drop_refused(raw, path)
        inert = {key[-1]: why for key, why in schema.INERT.items() if _matches(key[:-1], path)}
        values = self.fields(raw, fields, path, owner=".".join(map(str, path)), inert=inert)
        return cls.model_construct(**values)

    def _drop_refused(self, raw: dict, path: tuple):
        for key, (harmless, why) in schema.REFUSED.items():
            if key[:-1] == path and key[-1] in raw and raw.pop(key[-1]) not in (harmless, None):
                self.problem(key, f"not offered: {why}")

    # -- components -----------------------------------------------------------------------

    def component(self, registry: Registry, name, raw: dict, path: tuple, beside=()) -> Component | None:
        """A registered factory's arguments; `beside` are keys of the section that are not the factory's."""
        if not isinstance(name, str) or not name:
            self.problem((*path, "name"), f"is missing; it says which {registry.kind} to use")
            return None
        try:
            entry = registry.get(name)
        except ConfigError as error:
            at = (*path, "name") if "name" in (self._at(path) or {}) else path
            text = str(error)
            if self.not_run:
                text += (
                    f"; its configuration imports {', '.join(self.not_run)}, which runs only where you ask for it: "
                    + " ".join(f"--import {name}" for name in self.not_run)
                    + ", or -c with the recipe"
                )
            if self.for_training or not only_training_needs(path):
                self.problem(at, text)
            else:
                self.note(at, f"left out, since only training needs it: {text}")
                self.absent.append(path)
            return None
        fields = {k: (_annotation(p), p.default) for k, p in entry.parameters().items()}
        if registry is DATASETS:  # every data set can be cut; see datasets/combine.py
            fields["slice"] = (str | None, None)
            raw = self._with_slice(dict(raw), path)
        arguments = self.fields(
            dict(raw),
            fields,
            path,
            owner=entry.name,
            beside=beside,
            aliases=entry.argument_aliases,
            inert=entry.inert,
            refused=entry.refused | dict.fromkeys(_supplied(entry), "the engine fills it in"),
        )
        for key, (harmless, remark) in entry.remarks.items():
            if key in raw and arguments[key] != harmless:
                self.note((*path, key), remark)
        return Component(entry.name, arguments, path)

    def arguments(self, keys: KeysOf, raw, path: tuple) -> dict:
        """Another factory's arguments where a parameter takes them."""
        entry = keys.registry.get(keys.name)
        fields = {k: (_annotation(p), p.default) for k, p in entry.parameters().items() if k not in keys.without}
        return self.fields(self.mapping(raw, path), fields, path, owner=entry.name, inert=entry.inert)

    def _with_slice(self, raw: dict, path: tuple) -> dict:
        """The key `slice` as text. Without quotes YAML makes a list or a mapping of [:5] and [-5:]."""
        if raw.get("slice") is None:
            return raw
        text = raw["slice"]
        if isinstance(text, list) and len(text) == 1:
            text = text[0]
        if isinstance(text, dict) and list(text.values()) == [None]:
            text = f"{next(iter(text))}:"
        if not isinstance(text, str) or not re.fullmatch(r"\[?\s*(-?\d+)?\s*:\s*(-?\d+)?\s*\]?", text):
            given = raw.pop("slice")
            self.problem(
                (*path, "slice"),
                f"got {given!r}; write it in quotes as in Python, for instance '[1000:2000]' or '[-50:]'",
            )
            return raw
        return {**raw, "slice": text}

    def _at(self, path: tuple):
        at: Any = self.source.tree
        for part in path:
            if not isinstance(at, (dict, list)):
                return None
            at = at[part]
        return at if isinstance(at, dict) else None

    def named(self, registry: Registry, raw, path: tuple, default: str | None = None) -> Component | None:
        """A section of the form `name: X` beside its arguments."""
        raw = dict(self.mapping(raw, path))
        return self.component(registry, raw.pop("name", default), raw, path)

    def items(self, registry: Registry, raw, path: tuple) -> list[Component]:
        """A list of the form `- X: arguments`."""
        if raw is None:
            return []
        if not isinstance(raw, list):
            self.problem(path, f"expected a list of {registry.plural}, got {raw!r}")
            return []
        found = []
        for i, item in enumerate(raw):
            here = (*path, i)
            if isinstance(item, str):
                item = {item: None}
            if not isinstance(item, dict) or len(item) != 1:
                self.problem(here, f"expected one name with its arguments, got {item!r}")
                continue
            [(name, arguments)] = item.items()
            found.append(self.component(registry, name, self.mapping(arguments, (*here, name)), (*here, name)))
        return [c for c in found if c]

    def modes(self, registry: Registry, raw, path: tuple) -> dict[str, list[Component]]:
        """A section with Train and Eval lists."""
        raw = self.mapping(raw, path)
        for key in raw:
            if key not in ("Train", "Eval"):
                close = nearest(key, ("Train", "Eval"))
                hint = f"did you mean {close}?" if close else "there are Train and Eval"
                self.problem((*path, key), f"unknown key; {hint}")
        return {mode: self.items(registry, raw.get(mode), (*path, mode)) for mode in ("Train", "Eval")}

    def data(self, raw, path: tuple) -> DataSection | None:
        raw = self.mapping(raw, path, empty_ok=False)
        for key in raw:
            if key not in ("dataset", "sampler", "loader"):
                close = nearest(key, ("dataset", "sampler", "loader"))
                hint = f"did you mean {close}?" if close else "there are dataset, sampler and loader"
                self.problem((*path, key), f"unknown key; {hint}")
        if raw and not raw.get("dataset"):
            self.problem((*path, "dataset"), "is missing")
            return None
        dataset_path = (*path, "dataset")
        raw_dataset = dict(self.mapping(raw.get("dataset"), dataset_path))
        lists = {}
        kinds = (
            ("transform_ops", "transform", TRANSFORMS),
            ("batch_transform_ops", "batch_transform", BATCH_TRANSFORMS),
        )
        for key, other, registry in kinds:
            if key in raw_dataset and other in raw_dataset:
                self.problem((*dataset_path, other), f"is another name of {key}, which is given too; keep one")
            used = other if other in raw_dataset else key
            lists[key] = self.items(registry, raw_dataset.pop(used, None), (*dataset_path, used))
            raw_dataset.pop(other, None)
        dataset = self.component(DATASETS, raw_dataset.pop("name", None), raw_dataset, dataset_path)
        sampler = self.named(SAMPLERS, raw.get("sampler"), (*path, "sampler"), default="DistributedBatchSampler")
        loader = self.section(schema.Loader, raw.get("loader"), (*path, "loader"))
        if dataset is None or sampler is None:
            return None
        return DataSection(dataset, lists["transform_ops"], lists["batch_transform_ops"], sampler, loader, path)


def _matches(pattern: tuple, path: tuple) -> bool:
    return len(pattern) == len(path) and all(a in ("*", b) for a, b in zip(pattern, path, strict=True))


def _section_of(annotation):
    """The schema section in `Section | None`, if there is one."""
    for argument in typing.get_args(annotation):
        if isinstance(argument, type) and issubclass(argument, BaseModel):
            return argument
    return None


def _annotation(parameter: inspect.Parameter):
    return typing.Any if parameter.annotation is inspect.Parameter.empty else parameter.annotation


def _supplied(entry: Entry):
    return entry.supplied & set(inspect.signature(entry.factory).parameters)


SECTIONS = (
    "Global",
    "DistributedStrategy",
    "FP16",
    "EMA",
    "Model",
    "Loss",
    "LRScheduler",
    "Optimizer",
    "DataLoader",
    "Metric",
    "Export",
)


def check(
    source: Source, imports: Iterable[str] = (), *, for_training: bool = True, run_imports: bool = True
) -> Config:
    """Check a whole tree; the arguments are those of `plsc.config.load`.

    Raises:
        ConfigError: one with every problem.
    """
    components.register_all()
    c = _Checker(source, for_training, import_named(source, imports, allowed=run_imports))
    tree = dict(source.tree)
    if "AMP" in tree:
        if "FP16" in tree:
            c.problem(("AMP",), "is another name of FP16, which is given too; keep one")
        tree["FP16"] = tree.pop("AMP")
        source.origins.update({("FP16", *k[1:]): v for k, v in source.origins.items() if k[0] == "AMP"})
    for key in tree:
        if key not in SECTIONS:
            close = nearest(key, (*SECTIONS, "AMP"))
            hint = f"did you mean {close}?" if close else f"there are {', '.join(SECTIONS)}"
            c.problem((key,), f"unknown section; {hint}")
    for key in ("Model", "Loss", "LRScheduler", "Optimizer", "DataLoader") if for_training else ("Model",):
        if tree.get(key) is None:
            c.problem((key,), "the section is missing")

    config = Config(
        Global=c.section(schema.Global, tree.get("Global"), ("Global",)),
        DistributedStrategy=c.section(
            schema.DistributedStrategy, tree.get("DistributedStrategy"), ("DistributedStrategy",)
        ),
        FP16=c.section(schema.FP16, tree["FP16"], ("FP16",)) if tree.get("FP16") is not None else None,
        EMA=c.section(schema.EMA, tree["EMA"], ("EMA",)) if tree.get("EMA") is not None else None,
        Model=c.named(MODELS, tree["Model"], ("Model",)) if tree.get("Model") is not None else None,
        Loss=_losses(c, tree.get("Loss")),
        LRScheduler=c.named(SCHEDULERS, tree["LRScheduler"], ("LRScheduler",), default="Constant")
        if tree.get("LRScheduler") is not None
        else None,
        **_optimizer(c, tree.get("Optimizer")),
        DataLoader=_dataloaders(c, tree.get("DataLoader")),
        Metric=c.modes(METRICS, tree.get("Metric"), ("Metric",)),
        Export=c.section(schema.Export, tree.get("Export"), ("Export",)),
        notes=c.notes,
        source=source,
    )
    if not c.problems:
        _across(c, config)
    if c.problems:
        count = len(c.problems)
        head = "the configuration has a problem" if count == 1 else f"the configuration has {count} problems"
        raise ConfigError("\n  ".join([f"{head}:", *c.problems]))
    return config


def _losses(c: _Checker, raw) -> dict[str, list[Component]]:
    """The losses by mode; a mode of which one is not there has none, since the others' sum is another loss."""
    modes = c.modes(LOSSES, raw, ("Loss",))
    return {
        mode: [] if any(path[:2] == ("Loss", mode) for path in c.absent) else items for mode, items in modes.items()
    }


def _optimizer(c: _Checker, raw) -> dict:
    path, given = ("Optimizer",), raw
    raw = dict(c.mapping(raw, path))
    c._drop_refused(raw, path)
    shared = {k: raw.pop(k) for k in list(raw) if k in schema.OptimizerOptions.model_fields}
    options = c.section(schema.OptimizerOptions, shared, path)
    name = raw.pop("name", None)
    component = None
    if name or isinstance(given, dict):
        component = c.component(OPTIMIZERS, name, raw, path, beside=schema.OptimizerOptions.model_fields)
    return {"Optimizer": component, "optimizer_options": options}


def _dataloaders(c: _Checker, raw) -> dict[str, DataSection]:
    raw = c.mapping(raw, ("DataLoader",))
    for key in raw:
        if key not in ("Train", "Eval"):
            close = nearest(key, ("Train", "Eval"))
            hint = f"did you mean {close}?" if close else "there are Train and Eval"
            c.problem(("DataLoader", key), f"unknown key; {hint}")
    found = {m: c.data(raw[m], ("DataLoader", m)) for m in ("Train", "Eval") if raw.get(m) is not None}
    absent = {path[1] for path in c.absent if path[0] == "DataLoader"}
    return {mode: section for mode, section in found.items() if section and mode not in absent}


def _across(c: _Checker, config: Config):
    """Checks that concern more than one key."""
    g = config.Global
    if not config.Loss["Train"] and c.for_training:
        c.problem(("Loss", "Train"), "is missing; it lists the losses to train with")
    if not config.DataLoader and c.for_training:
        c.problem(("DataLoader",), "has neither Train nor Eval")
    if g.epochs is None and g.max_train_step is None and "Train" in config.DataLoader:
        c.problem(("Global", "epochs"), "is missing; give epochs or max_train_step, the length of the run")
    if g.eval_during_train and "Eval" not in config.DataLoader and c.for_training:
        c.problem(("Global", "eval_during_train"), "is True, but there is no DataLoader.Eval")
    if config.EMA and config.EMA.ema_eval and "Eval" not in config.DataLoader:
        c.problem(("EMA", "ema_eval"), "is True, but there is no DataLoader.Eval")
    for mode, section in config.DataLoader.items():
        path = ("DataLoader", mode, "sampler", "batch_size")
        size = section.sampler.arguments["batch_size"]
        if size is not None and size < 1:
            c.problem(path, f"is {size}; it must be at least 1")
            continue
        if section.batch_transforms and mode == "Eval":
            c.problem(section.batch_transforms[0].path, "mixes pictures, which evaluation does not")
        if mode == "Eval" and (section.sampler.arguments["drop_last"] or section.sampler.arguments["shuffle"]):
            c.note(path[:-1], "drop_last and shuffle are without effect: evaluation takes every sample once, in order")
        if size is None and (mode == "Eval" or g.global_batch_size is None):
            c.problem(path, "is missing; it is the batch of one process")
        elif mode == "Train" and size is not None and size % g.accum_steps:
            c.problem(path, f"{size} is not divisible by Global.accum_steps = {g.accum_steps}")
    fp16, asked = config.FP16, config.optimizer_options.use_master_param
    if fp16 and asked is not None:
        if ("FP16", "master_weight") in c.source.origins and fp16.master_weight != asked:
            c.problem(("Optimizer", "use_master_param"), f"is {asked}, but FP16.master_weight is {fp16.master_weight}")
        fp16.master_weight = asked
    if g.to_static and config.DistributedStrategy.recompute:
        c.problem(
            ("Global", "to_static"),
            "is given with DistributedStrategy.recompute, which saves no memory in Paddle's compiled blocks; keep one",
        )
    if config.FP16:
        scaler = config.FP16.GradScaler
        if scaler.init_loss_scaling > scaler.max_loss_scaling:
            c.problem(("FP16", "GradScaler", "init_loss_scaling"), "is larger than max_loss_scaling")
