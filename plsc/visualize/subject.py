"""What is drawn: a model and how pictures enter it. Nothing of either is guessed."""

import dataclasses

from plsc import build, loading
from plsc.config import Config
from plsc.data.class_names import read_class_names
from plsc.data.preprocess import Preprocess
from plsc.errors import ConfigError
from plsc.models import VisionTransformer, ViTSpec
from plsc.visualize import sheet
from plsc.visualize.pictures import Picture, read_picture


@dataclasses.dataclass
class Subject:
    """A model to draw.

    Attributes:
        name: for titles, the end of the path that the user gave.
        network: in evaluation mode; None for a recipe without weights.
        preprocess: None where neither the weights nor a recipe say it.
        class_names: None where nobody says them.
        position: how its position embedding is resized, bicubic or bilinear.
    """

    name: str
    spec: ViTSpec
    network: VisionTransformer | None = None
    preprocess: Preprocess | None = None
    class_names: list[str] | None = None
    position: str = "bicubic"

    def class_name(self, index: int) -> str:
        """A class as a title shows it: the first of its names, else its number."""
        if self.class_names is None or index >= len(self.class_names):
            return f"class {index}"
        return self.class_names[index].split(",")[0]


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
    loaded = loading.model_of(weights, weights="ema" if ema else "model", img_size=resolution, config=config)
    spec = loaded.network.spec
    names = loaded.class_names if class_names is None else read_class_names(class_names, spec.class_num)
    return Subject(sheet.end_of(weights), spec, loaded.network, loaded.preprocess, names, loaded.position)


def open_recipe(recipe: str, config: Config, *, resolution: int | None = None) -> Subject:
    """The model of a recipe, without weights."""
    try:
        spec = ViTSpec(**build.model_part(config, resolution).arguments)
    except ConfigError as error:
        raise config.error(("Model",), str(error)) from error
    preprocess = build.recipe_preprocess(config, resolution)
    if preprocess is None:
        raise ConfigError(f"{recipe}: has no DataLoader.Eval, whose transform_ops say how pictures enter the model")
    return Subject(sheet.end_of(recipe), spec, preprocess=preprocess)


def read_pictures(subject: Subject, paths) -> list[Picture]:
    """Picture files as the model sees them.

    Raises:
        ConfigError: nobody says how pictures enter the model.
        DataError: a file is no picture, or does not fit the model.
    """
    if subject.preprocess is None:
        raise ConfigError(
            f"{subject.name}: does not say how pictures enter the model (resize, crop, mean, std); give -c RECIPE, "
            "whose DataLoader.Eval says it, for instance -c DeiT_tiny_patch16_224_eval for ImageNet's mean and std"
        )
    return [read_picture(path, subject.preprocess, subject.spec) for path in paths]
