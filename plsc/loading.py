"""Names and paths → models: a new one by its name, or what a path holds with what its weights say of themselves."""

import dataclasses
import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from plsc import build, components
from plsc.config import Config
from plsc.config.checker import Checker
from plsc.config.source import load_source
from plsc.data.preprocess import Preprocess
from plsc.errors import CheckpointError, ConfigError
from plsc.model_card import ModelCard
from plsc.models.base import Model
from plsc.models.init import undrawn
from plsc.models.spec import parameter_count
from plsc.registry import MODELS, missing_members
from plsc.tensors import assign
from plsc.weights import Report, Source, adapt, read
from plsc.weights.families import family_of, family_of_spec

log = logging.getLogger("plsc")


def create_model(
    name: str,
    *,
    class_num: int | None = None,
    pretrained: str | Path | None = None,
    pretrained_allow: Sequence[str] = (),
    **fields: Any,
) -> Model:
    """A model by its name, with fresh weights or somebody's.

    Args:
        name: as `plsc.list_models()` has it.
        class_num: outputs of the head; 0 leaves the head out. Default: the model's own, 1000.
        pretrained: a path of weights, whatever plsc.load_model takes. Position embedding, patch embedding and input
            channels are adapted where they differ, a head of another size is initialised; the log says what was done.
        pretrained_allow: patterns, such as "norm.*", of other arrays that may be left out or initialised.
        fields: the model's other arguments, such as img_size, depth or drop_path_rate; `plsc list model NAME` shows
            them.

    Returns:
        A paddle.nn.Layer in training mode, see plsc.models.base.Model.

    Raises:
        ConfigError: there is no such model or argument, or a value is out of bounds; all problems at once.
        CheckpointError: the weights cannot be read, or are of another model.

    Example:
        >>> model = plsc.create_model("ViT_small_patch16_224", class_num=10, img_size=64, patch_size=8)
        >>> model(paddle.zeros([2, 3, 64, 64])).shape
        [2, 10]
    """
    if isinstance(pretrained, bool):
        raise ConfigError(
            f"create_model: pretrained is {pretrained}; it takes the path of weights, see docs/checkpoints.md"
        )
    components.register_all()
    given = fields if class_num is None else {"class_num": class_num, **fields}
    source = load_source({"Model": {"name": name, **given}})
    checker = Checker(source)
    part = checker.named(MODELS, source.tree["Model"], ("Model",))
    checker.raise_problems()
    assert part is not None  # else there are problems
    network = built(part.name, part.arguments)
    if pretrained is not None:
        weights = read(pretrained, names=network.state_dict().keys())
        report = load_pretrained(network, weights, position=weights.card.position or "bicubic", allow=pretrained_allow)
        log.info("weights of %s: %s", pretrained, report)
    return network


@dataclasses.dataclass
class LoadedModel:
    """A model rebuilt from nothing but its weights.

    Attributes:
        network: in evaluation mode.
        card: what its weights say, completed by the recipe where one was given.
        source: what was read, see plsc.weights.read.
    """

    network: Model
    card: ModelCard
    source: Source

    @property
    def path(self) -> Path:
        """The file that was read."""
        return self.source.path

    def required_preprocess(self) -> Preprocess:
        """How pictures enter the model. Raises ConfigError where it is unknown."""
        return self.card.required_preprocess(self.path)

    def check_head(self) -> None:
        """Raise CheckpointError where the model has no head, so that it cannot classify."""
        if self.network.spec.class_num == 0:
            raise CheckpointError(f"{self.path}: has no head, so it cannot classify")


def load_model(
    path: str | Path,
    *,
    weights: str = "model",
    img_size: int | None = None,
    config: Config | None = None,
    verify: bool = True,
) -> LoadedModel:
    """The model that a file, checkpoint or run directory holds, ours or foreign: the one way from weights to a model.

    Args:
        path: whatever plsc.weights.read takes.
        weights: model, or ema for the averaged ones of a plsc checkpoint.
        img_size: another resolution in pixels; position embedding and preprocessing follow.
        config: a recipe that says the model; what the weights do not say of preprocessing, activation and resizing
            of positions is the recipe's, too. Without it the path itself says it all.
        verify: compare a plsc checkpoint's files with their checksums.

    Raises:
        CheckpointError: the file cannot be read, does not fit, or does not say all that rebuilds its model.

    Example:
        loaded = load_model("output/mine")
        tokens = loaded.network.forward_features(images)  # images [B, 3, height, width], normalised
    """
    source = read(path, weights, verify=verify)
    if config is None:
        source.check_known()
        _say_assumed(source)
    else:
        config = build.with_class_num(config, source.card.spec.get("class_num"))
    with undrawn():
        network = _as_written(source, img_size) if config is None else _as_in_recipe(config, img_size)
    position = position_method(config, source)
    load_pretrained(network, source, strict=True, resized=img_size is not None, position=position)
    network.eval()
    card = source.card
    preprocess, activation = own_preprocess(source, img_size), card.activation
    if config is not None:
        preprocess = preferred_preprocess(source.path, preprocess, build.recipe_preprocess(config, img_size))
        activation = activation or build.activation(config)
    if config is not None:  # which states all
        card = dataclasses.replace(card, model=config.Model.name, inferred=frozenset(), assumed=frozenset())
    card = dataclasses.replace(
        card,
        spec=dataclasses.asdict(network.spec),
        preprocess=preprocess,
        activation=activation,
        position=position,
    )
    return LoadedModel(network, card, source)


def _say_assumed(source: Source) -> None:
    if source.card.assumed:
        log.warning(
            "%s: assumed, as neither the file nor its name states it: %s; a recipe (-c RECIPE) may state it",
            source.path,
            source.card.assumptions,
        )


def _as_written(source: Source, img_size: int | None) -> Model:
    """The model that weights themselves describe."""
    card, family = source.card, family_of(source.card.model)
    if card.model is None:
        raise CheckpointError(f"{source.path}: does not say which model it is of; give -c RECIPE, whose Model does")
    if card.model not in MODELS:
        components.register_all()
    if card.model not in MODELS:
        raise CheckpointError(
            f"{source.path}: is of the model {card.model}, which is not registered; name the module or file that "
            "registers it, for instance --import ./my_model.py"
        )
    fields = dict(card.spec)
    try:
        if family.spec is not None:
            _check_count(source, family.spec(**fields))
        if img_size is not None and "img_size" in fields:
            fields["img_size"] = img_size
        return built(card.model, fields)
    except (TypeError, ValueError, ConfigError) as error:
        raise CheckpointError(f"{source.path}: does not describe a {card.model}: {error}") from error


def built(name: str, fields: Mapping[str, Any]) -> Model:
    """A registered model. Raises ConfigError where what is registered makes no model."""
    network = MODELS.get(name).factory(**fields)
    missing = missing_members(network, Model)
    if missing:
        needed = ", ".join(missing)
        raise ConfigError(f"{name} lacks {needed}, which a model needs; plsc.models.base.Model says what they are")
    return network


def _check_count(source: Source, spec: Any) -> None:
    """Refuse a spec of a model far larger than the weights, before so large a one is built."""
    try:
        described = parameter_count(spec)
    except TypeError:  # its family does not count
        return
    held = sum(math.prod(tensor.shape) for tensor in source.tensors.values())
    if described > 2 * held + 10_000:
        raise CheckpointError(f"{source.path}: damaged: its spec is of {described:,} parameters, but it holds {held:,}")


def _as_in_recipe(config: Config, img_size: int | None) -> Model:
    return build.component(config, MODELS, build.model_part(config, img_size))


def position_method(config: Config | None, source: Source) -> Literal["bicubic", "bilinear"]:
    """How a position embedding is resized: as the recipe says, else as the weights say, else bicubic."""
    if config is not None and ("Global", "position_embedding") in config.source.origins:
        return config.Global.position_embedding
    return source.card.position or "bicubic"


def own_preprocess(source: Source, img_size: int | None = None) -> Preprocess | None:
    """How pictures enter the model as the weights themselves say, at another resolution in proportion.

    Raises:
        CheckpointError: its pictures have no size, or are not square, so that there is no proportion.
    """
    preprocess = source.card.preprocess
    if preprocess is None or img_size is None:
        return preprocess
    if source.card.img_size is None:
        raise CheckpointError(f"{source.path}: its pictures have no fixed size, so there is no other resolution")
    height, width = source.card.img_size
    if height != width:
        raise CheckpointError(f"{source.path}: is for {height}x{width} pixels; another resolution needs a square one")
    return preprocess.enlarged(img_size, height)


def preferred_preprocess(path: str | Path, own: Preprocess | None, recipe: Preprocess | None) -> Preprocess | None:
    """What weights or an export say themselves; a recipe where they do not. One warning where the two differ."""
    if own is None:
        return recipe
    warn_of_preprocess(path, own, recipe, used="its own is used, not the recipe's")
    return own


def warn_of_preprocess(path: str | Path, own: Preprocess | None, recipe: Preprocess | None, *, used: str) -> None:
    """Say where pictures are prepared otherwise than a recipe does. Either may be unknown."""
    if own is not None and recipe is not None and own != recipe:
        log.warning(
            "%s: its pictures are prepared otherwise than DataLoader.Eval says; %s:\n  weights  %s\n  recipe   %s",
            path,
            used,
            own,
            recipe,
        )


def _check_stated(source: Source, spec: Any, strict: bool, allow: Sequence[str] = ()) -> None:
    """Where weights state another model than the one they are loaded into: an error if strict, else a warning.

    What follows only from their codebase's habit or the name of their architecture is a warning always.
    """
    card, own, family = source.card, dataclasses.asdict(spec), family_of_spec(spec)
    stated = card.stated
    fields = [*family.needed, *family.usual]
    other = [name for name in fields if name in card.inferred - card.assumed and card.spec[name] != own[name]]
    if other:
        differences = "; ".join(f"{name} {card.spec[name]!r}, the model has {own[name]!r}" for name in other)
        owner = f"weights called {card.architecture}" if card.architecture else f"{source.layout}'s weights"
        log.warning("%s: %s have %s; the model's is taken", source.path, owner, differences)
    wrong = [name for name in family.unseen if name in stated and _plain(stated[name]) != _plain(own[name])]
    sure = [name for name in family.parts if name not in card.assumed]
    part = [name for name in sure if card.spec.get(name, own[name]) != own[name] and name not in allow]
    if not strict and part:
        differences = "; ".join(f"{name} {card.spec[name]!r}, the model has {own[name]!r}" for name in part)
        raise CheckpointError(
            f"{source.path}: training does not start from weights of a model with {differences}; as in the weights: "
            f"{' '.join(f'-o Model.{name}={json.dumps(card.spec[name])}' for name in part)}; to start all the same: "
            f"Global.pretrained_allow: [{', '.join(part)}]"
        )
    if not wrong:
        return
    differences = "; ".join(f"{name} {stated[name]!r}, the model has {own[name]!r}" for name in wrong)
    remedy = " ".join(f"-o Model.{name}={json.dumps(stated[name])}" for name in wrong)
    message = f"{source.path}: was trained with {differences}; as in the weights: {remedy}"
    if strict:
        raise CheckpointError(message)
    log.warning("%s", message)


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    return list(value) if isinstance(value, tuple) else value


def load_pretrained(
    network: Model,
    path: str | Path | Source,
    *,
    reset_head: bool = False,
    strict: bool = False,
    resized: bool = False,
    allow: Sequence[str] = (),
    weights: str = "model",
    class_names: list[str] | None = None,
    position: str = "bicubic",
) -> Report:
    """Load weights into a model, one array at a time.

    Args:
        network: its parameters and buffers are changed, all of them or, where an error is raised, none.
        path: a file's path, or a Source that was read already.
        weights: model, or ema for the averaged ones of a checkpoint.
        reset_head, strict, resized, allow, class_names, position: see plsc.weights.adapt.

    Returns:
        What became of each array.

    Raises:
        CheckpointError: the file cannot be read or does not fit; strict also where it states another model than this.
    """
    tensors = dict(network.state_dict())
    source = path if isinstance(path, Source) else read(path, weights, names=tensors.keys())
    arrays, report = adapt(
        source,
        {name: tuple(tensor.shape) for name, tensor in tensors.items()},
        network.spec,
        reset_head=reset_head,
        strict=strict,
        resized=resized,
        allow=allow,
        class_names=class_names,
        position=position,
    )
    _check_stated(source, network.spec, strict, allow)
    for name in arrays:  # everything is read and looked at before the model changes
        shape, wanted = list(arrays[name].shape), list(tensors[name].shape)
        if shape != wanted:
            raise CheckpointError(f"{source.path}: {name} becomes {shape}, the model has {wanted}")
    for name in arrays:
        assign(tensors[name], arrays[name])
    return report
