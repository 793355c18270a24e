"""Any path → a model with what its weights say of it: the one way from weights to a model."""

import dataclasses
import json
import logging
from pathlib import Path

from plsc import build
from plsc.config import Config
from plsc.data.preprocess import Preprocess
from plsc.errors import CheckpointError, ConfigError
from plsc.model_card import ModelCard
from plsc.models import VisionTransformer as Model
from plsc.models.layers import pair
from plsc.registry import MODELS
from plsc.tensors import assign
from plsc.weights import Source, adapt, read

log = logging.getLogger("plsc")


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

    def check_head(self) -> None:
        """Raise CheckpointError where the model has no head, so that it cannot classify."""
        if self.network.spec.class_num == 0:
            raise CheckpointError(f"{self.path}: has no head, so it cannot classify")


def load_model(
    path, *, weights: str = "model", img_size: int | None = None, config: Config | None = None
) -> LoadedModel:
    """The model that a file, checkpoint or run directory holds, ours or foreign: the one way from weights to a model.

    Args:
        path: whatever plsc.weights.read takes.
        weights: model, or ema for the averaged ones of a plsc checkpoint.
        img_size: another resolution in pixels; position embedding and preprocessing follow.
        config: a recipe that says the model; what the weights do not say of preprocessing, activation and resizing
            of positions is the recipe's, too. Without it the path itself says it all.

    Raises:
        CheckpointError: the file cannot be read, does not fit, or does not say all that rebuilds its model.

    Example:
        loaded = load_model("output/mine")
        tokens = loaded.network.forward_features(images)  # images [B, 3, height, width], normalised
    """
    source = read(path, weights)
    if config is not None:
        config = build.with_class_num(config, source.card.spec.get("class_num"))
    network = _as_written(source, img_size) if config is None else _as_in_recipe(config, img_size)
    position = position_method(config, source)
    load_pretrained(
        network, source, strict=True, allowed=("pos_embed",) if img_size is not None else (), position=position
    )
    network.eval()
    card = source.card
    preprocess, activation = own_preprocess(source, img_size), card.activation
    if config is not None:
        preprocess = preferred_preprocess(source.path, preprocess, build.recipe_preprocess(config, img_size))
        activation = activation or build.activation(config)
    card = dataclasses.replace(
        card,
        model=card.model if config is None else config.Model.name,
        spec=dataclasses.asdict(network.spec),
        preprocess=preprocess,
        activation=activation,
        position=position,
    )
    return LoadedModel(network, card, source)


def _as_written(source: Source, img_size: int | None) -> Model:
    """The model that weights themselves say."""
    fields = dict(source.card.spec)
    if img_size is not None:
        fields["img_size"] = img_size
    try:
        return MODELS.get(source.card.model).factory(**fields)
    except (TypeError, ConfigError) as error:
        raise CheckpointError(f"{source.path}: does not describe a Vision Transformer: {error}") from error


def _as_in_recipe(config: Config, img_size: int | None) -> Model:
    return build.component(config, MODELS, build.model_part(config, img_size))


def position_method(config: Config | None, source: Source) -> str:
    """How a position embedding is resized: as the recipe says, else as the weights say, else bicubic."""
    if config is not None and ("Global", "position_embedding") in config.source.origins:
        return config.Global.position_embedding
    return source.card.position or "bicubic"


def own_preprocess(source: Source, img_size: int | None = None) -> Preprocess | None:
    """How pictures enter the model as the weights themselves say, at another resolution in proportion.

    Raises:
        CheckpointError: it is of pictures that are not square and so have no proportion.
    """
    preprocess, own_size = source.card.preprocess, source.card.spec.get("img_size")
    if preprocess is None or img_size is None or own_size is None:
        return preprocess
    height, width = pair(own_size)
    if height != width:
        raise CheckpointError(f"{source.path}: is for {height}x{width} pixels; another resolution needs a square one")
    return preprocess.enlarged(img_size, height)


def preferred_preprocess(path, own: Preprocess | None, recipe: Preprocess | None) -> Preprocess | None:
    """What weights or an export say themselves; a recipe where they do not. One warning where the two differ."""
    if own is None:
        return recipe
    warn_of_preprocess(path, own, recipe, used="its own is used, not the recipe's")
    return own


def warn_of_preprocess(path, own: Preprocess | None, recipe: Preprocess | None, *, used: str) -> None:
    """Say where pictures are prepared otherwise than a recipe does. Either may be unknown."""
    if own is not None and recipe is not None and own != recipe:
        log.warning(
            "%s: its pictures are prepared otherwise than DataLoader.Eval says; %s:\n  weights  %s\n  recipe   %s",
            path,
            used,
            own,
            recipe,
        )


# what no array's shape shows, so that a model that differs loads without a sound
_UNSEEN = ("num_heads", "qk_scale", "act", "epsilon", "pool", "no_embed_class")


def _check_stated(source: Source, spec, strict: bool) -> None:
    """Where weights state another model than the one they are loaded into: an error if strict, else a warning."""
    stated = source.card.stated
    wrong = [name for name in _UNSEEN if name in stated and stated[name] != getattr(spec, name)]
    if not wrong:
        return
    told = "; ".join(f"{name} {stated[name]!r}, the model has {getattr(spec, name)!r}" for name in wrong)
    remedy = " ".join(f"-o Model.{name}={json.dumps(stated[name])}" for name in wrong)
    message = f"{source.path}: was trained with {told}; as in the weights: {remedy}"
    if strict:
        raise CheckpointError(message)
    log.warning("%s", message)


def load_pretrained(
    network,
    path,
    *,
    reset_head: bool = False,
    strict: bool = False,
    allowed=(),
    weights: str = "model",
    class_names: list[str] | None = None,
    position: str = "bicubic",
):
    """Load weights into a model, one array at a time; returns the report. See weights.adapt.

    Args:
        path: a file's path, or a Source that was read already.

    Raises:
        CheckpointError: the file cannot be read or does not fit; strict also where it states another model than this.
    """
    spec = network.spec
    parameters = dict(network.named_parameters())
    source = path if isinstance(path, Source) else read(path, weights)
    _check_stated(source, spec, strict)
    arrays, report = adapt(
        source,
        {name: p.shape for name, p in parameters.items()},
        grid=spec.grid,
        prefix=spec.embedded_prefix,
        reset_head=reset_head,
        strict=strict,
        allowed=allowed,
        class_names=class_names,
        position=position,
    )
    for name in arrays:  # everything is read and looked at before the model changes
        found = arrays[name].shape
        if list(found) != list(parameters[name].shape):
            wanted = list(parameters[name].shape)
            raise CheckpointError(f"{source.path}: {name} becomes {list(found)}, the model has {wanted}")
    for name in arrays:
        assign(parameters[name], arrays[name])
    return report
