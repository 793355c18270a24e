"""What is drawn: a model and how pictures enter it. Nothing of either is guessed."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from plsc import build, loading, places
from plsc.config import Config
from plsc.data.class_names import read_class_names
from plsc.data.preprocess import Preprocess
from plsc.errors import ConfigError
from plsc.loading import LoadedModel
from plsc.model_card import ModelCard
from plsc.models import VisionTransformer, ViTSpec
from plsc.models.base import AttentionMaps, AttentionPool, Model
from plsc.registry import missing_members
from plsc.visualize import rollout, sheet
from plsc.visualize.pictures import PatchSpec, Picture, read_picture


@dataclasses.dataclass
class Subject:
    """A model to draw.

    Attributes:
        name: for titles.
        network: in evaluation mode; None for a configuration without weights.
        card: what the weights, or else a configuration, state of it.
    """

    name: str
    spec: Any  # a ViTSpec, or another model's dataclass
    network: Model | None = None
    card: ModelCard = dataclasses.field(default_factory=ModelCard)

    def class_name(self, index: int) -> str:
        """A class as a title shows it: the first of its names, else its number."""
        name = self.card.class_name(index)
        return f"class {index}" if name == str(index) else name.split(",")[0]

    @property
    def preprocess(self) -> Preprocess:
        """How pictures enter the model. Raises ConfigError where it is unknown."""
        if self.card.preprocess is None:
            raise ConfigError(
                f"{self.name}: does not state how pictures enter the model (resize, crop, mean, std); give -c RECIPE, "
                "whose DataLoader.Eval does, for instance -c DeiT_tiny_patch16_224_eval for ImageNet's mean and std"
            )
        return self.card.preprocess

    def attentive(self) -> Model:
        """The model, whose attention can be drawn. Raises ConfigError where it cannot."""
        missing = [f"{name}()" for name in missing_members(self.network, AttentionMaps)]
        missing += [f"spec.{name}" for name in missing_members(self.spec, PatchSpec)]
        if missing or self.network is None:
            raise ConfigError(f"{self._kind} has no {', '.join(missing)}, from which attention is drawn")
        drawn = [pool for pool in rollout.POOLS if pool != "map" or isinstance(self.network, AttentionPool)]
        if self.spec.pool not in drawn:
            raise ConfigError(
                f"{self._kind}: spec.pool is {self.spec.pool!r}; attention is drawn of {', '.join(drawn)}"
            )
        return self.network

    def vit(self, what: str) -> VisionTransformer:
        """The model, a Vision Transformer, of which `what` is drawn. Raises ConfigError where it is another one."""
        self.check_vit(what)
        assert isinstance(self.network, VisionTransformer)
        return self.network

    def check_vit(self, what: str) -> None:
        """Raise ConfigError where the model is not a Vision Transformer, of which `what` is drawn."""
        if not isinstance(self.spec, ViTSpec):
            raise ConfigError(f"{self._kind} is not a Vision Transformer and has no {what} to draw")

    @property
    def _kind(self) -> str:
        return f"{self.name}: {self.card.model or type(self.network).__name__}"


Drawable = str | Path | LoadedModel | Config | Subject


def subject_of(model: Drawable, *, class_names: str | Path | None = None) -> Subject:
    """A model to draw, from weights, from what plsc.load_model made of them, or from a configuration without weights.

    Args:
        class_names: a file with a name a line, instead of those that the weights state.

    Raises:
        CheckpointError: the weights cannot be read.
        ConfigError: the configuration does not state how pictures enter its model.
        DataError: the class names cannot be read, or are not as many as the model's classes.
    """
    if isinstance(model, Config):
        subject = _of_config(model)
    elif isinstance(model, LoadedModel):
        run = places.run_directory(model.path)
        subject = Subject(sheet.end_of(run or model.path), model.network.spec, model.network, model.card)
    elif isinstance(model, Subject):
        subject = model
    else:
        loaded = loading.load_model(model)
        subject = Subject(sheet.end_of(model), loaded.network.spec, loaded.network, loaded.card)
    if class_names is None:
        return subject
    names = read_class_names(class_names, subject.spec.class_num)
    return dataclasses.replace(subject, card=dataclasses.replace(subject.card, class_names=names))


def _of_config(config: Config) -> Subject:
    """The model of a configuration, without weights; only a Vision Transformer's spec is known without building it."""
    name = sheet.end_of(config.source.name)
    preprocess = build.recipe_preprocess(config)
    if preprocess is None:
        raise ConfigError(f"{name}: has no DataLoader.Eval, whose transform_ops state how pictures enter the model")
    if config.Model.arguments.get("class_num") == "auto":
        config = config.replace({"Model.class_num": 0})  # a head is not drawn
    try:
        return Subject(name, ViTSpec(**build.model_part(config).arguments), card=ModelCard(preprocess=preprocess))
    except TypeError:
        network = build.model(config)
        return Subject(name, network.spec, network, ModelCard(model=config.Model.name, preprocess=preprocess))
    except ConfigError as error:
        raise config.error(("Model",), str(error)) from error


def read_pictures(subject: Subject, paths: Iterable[str | Path]) -> list[Picture]:
    """Picture files as the model sees them.

    Raises:
        ConfigError: it is unknown how pictures enter the model.
        DataError: a file is not a picture, or does not fit the model.
    """
    return [read_picture(path, subject.preprocess, subject.spec) for path in paths]
