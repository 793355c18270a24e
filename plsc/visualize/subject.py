"""What is drawn: a model and how pictures enter it. Nothing of either is guessed."""

import dataclasses

from plsc import build, loading
from plsc.config import Config
from plsc.data.class_names import read_class_names
from plsc.errors import ConfigError
from plsc.model_card import ModelCard
from plsc.models import VisionTransformer, ViTSpec
from plsc.visualize import sheet
from plsc.visualize.pictures import Picture, read_picture


@dataclasses.dataclass
class Subject:
    """A model to draw.

    Attributes:
        name: for titles, the end of the path that the user gave.
        network: in evaluation mode; None for a recipe without weights.
        card: what the weights, or else a recipe, say of it.
    """

    name: str
    spec: ViTSpec
    network: VisionTransformer | None = None
    card: ModelCard = dataclasses.field(default_factory=ModelCard)

    def class_name(self, index: int) -> str:
        """A class as a title shows it: the first of its names, else its number."""
        name = self.card.class_name(index)
        return f"class {index}" if name == str(index) else name.split(",")[0]


def open_weights(
    weights: str, *, ema: bool = False, resolution: int | None = None, config: Config | None = None, class_names=None
) -> Subject:
    """The model of any weights that plsc opens.

    Args:
        resolution: another image size in pixels; position embedding and preprocessing follow.
        config: a recipe that says the model and, where the weights do not, by DataLoader.Eval how pictures enter it;
            without it the weights say both.
        class_names: a file with a name a line; goes before what the weights say.
    """
    loaded = loading.load_model(weights, weights="ema" if ema else "model", img_size=resolution, config=config)
    spec, card = loaded.network.spec, loaded.card
    if class_names is not None:
        card = dataclasses.replace(card, class_names=read_class_names(class_names, spec.class_num))
    return Subject(sheet.end_of(weights), spec, loaded.network, card)


def open_recipe(recipe: str, config: Config, *, resolution: int | None = None) -> Subject:
    """The model of a recipe, without weights."""
    try:
        spec = ViTSpec(**build.model_part(config, resolution).arguments)
    except ConfigError as error:
        raise config.error(("Model",), str(error)) from error
    preprocess = build.recipe_preprocess(config, resolution)
    if preprocess is None:
        raise ConfigError(f"{recipe}: has no DataLoader.Eval, whose transform_ops say how pictures enter the model")
    return Subject(sheet.end_of(recipe), spec, card=ModelCard(preprocess=preprocess))


def read_pictures(subject: Subject, paths) -> list[Picture]:
    """Picture files as the model sees them.

    Raises:
        ConfigError: nobody says how pictures enter the model.
        DataError: a file is no picture, or does not fit the model.
    """
    if subject.card.preprocess is None:
        raise ConfigError(
            f"{subject.name}: does not say how pictures enter the model (resize, crop, mean, std); give -c RECIPE, "
            "whose DataLoader.Eval says it, for instance -c DeiT_tiny_patch16_224_eval for ImageNet's mean and std"
        )
    return [read_picture(path, subject.card.preprocess, subject.spec) for path in paths]
