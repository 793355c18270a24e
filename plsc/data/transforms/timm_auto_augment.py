"""timm's RandAugment, AutoAugment, 3-Augment and AugMix, written as its configuration strings.

timm (Wightman, pytorch-image-models, timm/data/auto_augment.py) counts levels 0 … 10 and has its own
ranges and kinds of the operations; PLSC's TimmAutoAugment is a copy of an early version of it.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator

from plsc.bounds import Fraction
from plsc.data.transforms import policies
from plsc.data.transforms.draws import either_side
from plsc.data.transforms.pixel_operations import GEOMETRIC, RESAMPLING, fill_of, operate, to_array, to_pillow
from plsc.errors import ConfigError
from plsc.registry import TRANSFORMS

_STRONGEST = 10.0  # the level whose part is 1
_UNIFORM_ABOVE = 100.0  # a larger standard deviation stands for levels uniform in 0 … level


def _nothing(part: float, rng) -> None:
    return None


def _enhance(part: float, rng) -> float:
    return part * 1.8 + 0.1


def _enhance_increasing(part: float, rng) -> float:
    return max(0.1, 1.0 + either_side(part * 0.9, rng))


# timm's name → (operation, its value from the level's part of 10); a translation is a part of the side
_KINDS = {
    "AutoContrast": ("AutoContrast", _nothing),
    "Equalize": ("Equalize", _nothing),
    "Invert": ("Invert", _nothing),
    "Rotate": ("Rotate", lambda part, rng: either_side(part * 30.0, rng)),
    "Posterize": ("Posterize", lambda part, rng: int(part * 4)),
    "PosterizeIncreasing": ("Posterize", lambda part, rng: max(0, 4 - int(part * 4))),
    "PosterizeOriginal": ("Posterize", lambda part, rng: 4 + int(part * 4)),
    "Solarize": ("Solarize", lambda part, rng: min(256, int(part * 256))),
    "SolarizeIncreasing": ("Solarize", lambda part, rng: max(0, 256 - int(part * 256))),
    "SolarizeAdd": ("SolarizeAdd", lambda part, rng: min(128, int(part * 110))),
    "Color": ("Color", _enhance),
    "Contrast": ("Contrast", _enhance),
    "Brightness": ("Brightness", _enhance),
    "Sharpness": ("Sharpness", _enhance),
    "ColorIncreasing": ("Color", _enhance_increasing),
    "ContrastIncreasing": ("Contrast", _enhance_increasing),
    "BrightnessIncreasing": ("Brightness", _enhance_increasing),
    "SharpnessIncreasing": ("Sharpness", _enhance_increasing),
    "ShearX": ("ShearX", lambda part, rng: either_side(part * 0.3, rng)),
    "ShearY": ("ShearY", lambda part, rng: either_side(part * 0.3, rng)),
    "TranslateX": ("TranslateX", either_side),
    "TranslateY": ("TranslateY", either_side),
    "Desaturate": ("Color", lambda part, rng: max(0.0, 0.5 - 0.5 * part)),
    "GaussianBlur": ("GaussianBlur", lambda part, rng: min(2.0, 0.1 + 1.9 * part)),
    "GaussianBlurRand": ("GaussianBlur", lambda part, rng: rng.uniform(0.1, max(0.1, 2.0 * min(1.0, part)))),
}


def _increasing(kind: str) -> str:
    """The kind that grows stronger with the level, where timm has it apart."""
    return f"{kind}Increasing" if f"{kind}Increasing" in _KINDS else kind


@dataclass(frozen=True)
class _Style:
    """What the operations of one transform share.

    Attributes:
        resample: filters of the geometric operations, one of them drawn each time.
        colour: of what comes in at the edges, (red, green, blue).
        level_std: standard deviation of the levels about the one given; infinite: uniform below it.
        highest_level: where levels are cut.
        translation: at level 10, a part of the side.
    """

    resample: tuple
    colour: tuple[int, int, int]
    level_std: float = 0.0
    highest_level: float = _STRONGEST
    translation: float = 0.45

    def drawn_level(self, level: float, rng) -> float:
        if self.level_std > _UNIFORM_ABOVE:
            level = rng.uniform(0.0, level)
        elif self.level_std > 0.0:
            level = rng.normal(level, self.level_std)
        return min(max(level, 0.0), self.highest_level)

    def apply(self, picture, kind: str, level: float, rng):
        """One operation at about this level."""
        name, value_at = _KINDS[kind]
        value = value_at(self.drawn_level(level, rng) / _STRONGEST, rng)
        if name not in GEOMETRIC:
            return operate(picture, name, value)
        if name == "TranslateX":
            value = value * self.translation * picture.width
        elif name == "TranslateY":
            value = value * self.translation * picture.height
        resample = self.resample[int(rng.integers(len(self.resample)))]
        return operate(picture, name, value, resample=resample, fill=fill_of(picture, self.colour))


class _RandAugment:
    """`layers` operations, each drawn independently and applied with a probability."""

    def __init__(self, style: _Style, kinds, weights, *, level: float, layers: int, probability: float):
        self.style, self.kinds, self.level = style, tuple(kinds), level
        self.layers, self.probability = layers, probability
        self.weights = None if weights is None else np.asarray(weights) / np.sum(weights)

    def __call__(self, image, rng):
        picture = to_pillow(image, "TimmAutoAugment")
        for i in self._drawn(rng):
            if rng.random() < self.probability:
                picture = self.style.apply(picture, self.kinds[i], self.level, rng)
        return to_array(picture)

    def _drawn(self, rng):
        if self.weights is None:
            return rng.integers(len(self.kinds), size=self.layers)
        return rng.choice(len(self.kinds), size=self.layers, replace=False, p=self.weights)


class _AutoAugment:
    """One sub-policy of a table, its operations with their probabilities."""

    def __init__(self, style: _Style, table):
        self.style, self.table = style, table

    def __call__(self, image, rng):
        picture = to_pillow(image, "TimmAutoAugment")
        for kind, probability, level in self.table[int(rng.integers(len(self.table)))]:
            if rng.random() < probability:
                picture = self.style.apply(picture, kind, level, rng)
        return to_array(picture)


class _AugMix:
    """The picture, blended with a mixture of `width` chains of operations on it (Hendrycks et al., 2020).

    Args:
        depth: operations of a chain; 0 draws 1, 2 or 3 for each.
        alpha: the chains' weights are drawn from Dirichlet(alpha, …), the blend from Beta(alpha, alpha).
    """

    def __init__(self, style: _Style, *, level: float, width: int, depth: int, alpha: float):
        self.style, self.level, self.width, self.depth, self.alpha = style, level, width, depth, alpha

    def __call__(self, image, rng):
        picture = to_pillow(image, "TimmAutoAugment")
        mixture = np.zeros(image.shape, dtype=np.float32)
        for weight in rng.dirichlet([self.alpha] * self.width):
            mixture += float(weight) * to_array(self._chain(picture, rng)).astype(np.float32)
        mixture = np.floor(np.clip(mixture, 0.0, 255.0))
        share = rng.beta(self.alpha, self.alpha)
        return (image + float(share) * (mixture - image)).astype(np.uint8)

    def _chain(self, picture, rng):
        depth = self.depth or int(rng.integers(1, 4))
        for i in rng.integers(len(policies.AUGMIX), size=depth):
            picture = self.style.apply(picture, policies.AUGMIX[i], self.level, rng)
        return picture


_TABLES = {
    "v0": (policies.EFFICIENTNET_V0, "Posterize"),
    "v0r": (policies.EFFICIENTNET_V0, "PosterizeIncreasing"),
    "original": (policies.IMAGENET, "PosterizeOriginal"),
    "originalr": (policies.IMAGENET, "PosterizeIncreasing"),
    "3a": (policies.THREE_AUGMENT, "Posterize"),
}
# what may follow the name, with the type of its number
_PARTS: dict[str, dict[str, type[int] | type[float]]] = {
    "rand": {"m": float, "n": int, "p": float, "mstd": float, "mmax": float, "inc": int, "w": int},
    "augmix": {"m": float, "w": int, "d": int, "a": float, "b": int, "mstd": float},
    **{name: {"mstd": float} for name in _TABLES},
}
# sets that `t` names: kinds and their weights
_SETS = {
    "weights": (tuple(policies.WEIGHTED), tuple(policies.WEIGHTED.values())),
    "3aw": (tuple(policies.WEIGHTED_3A), tuple(policies.WEIGHTED_3A.values())),
    "3a": (policies.RANDOM_3A, None),
}


def _parse(text: str) -> tuple[str, dict]:
    """ "rand-m9-mstd0.5" → ("rand", {"m": 9.0, "mstd": 0.5}); `t` holds the name of a set."""
    name, *parts = text.split("-")
    if name not in _PARTS:
        raise ConfigError(f"TimmAutoAugment.config_str is {text!r}; it begins with one of {', '.join(_PARTS)}")
    values: dict[str, Any] = {}
    for part in parts:
        if name == "rand" and part[:1] == "t" and part[1:] in _SETS:
            values["t"] = part[1:]
            continue
        match = re.fullmatch(r"([a-z]+)(\d+(?:\.\d+)?)", part)
        kind = _PARTS[name].get(match[1]) if match else None
        if match is None or kind is None or (kind is int and "." in match[2]):
            known = [f"{key}<{'whole ' if kind is int else ''}number>" for key, kind in _PARTS[name].items()]
            known += [f"t{key}" for key in _SETS] if name == "rand" else []
            raise ConfigError(
                f"TimmAutoAugment.config_str: {part!r} is not a part of {name}; it takes {', '.join(known)}"
            )
        values[match[1]] = kind(match[2])
    return name, values


def _rand_augment(style: _Style, values: dict) -> _RandAugment:
    kinds: Sequence[str] = policies.RANDOM
    weights: Sequence[float] | None = None
    if values.get("inc"):
        kinds = [_increasing(kind) for kind in kinds]
    if "t" in values:
        kinds, weights = _SETS[values["t"]]
    elif "w" in values:
        if values["w"] != 0:
            raise ConfigError(f"TimmAutoAugment.config_str: w{values['w']}: the only weights are w0")
        weights = policies.WEIGHTS_0
    layers, probability = values.get("n", 2), values.get("p", 0.5)
    if probability > 1:
        raise ConfigError(f"TimmAutoAugment.config_str: p{probability:g}: a probability is at most 1")
    if layers < 1:
        raise ConfigError(f"TimmAutoAugment.config_str: n{layers}: it must be at least 1")
    if weights is not None and layers > np.count_nonzero(weights):  # these are drawn without replacement
        raise ConfigError(f"TimmAutoAugment.config_str: n{layers}: there are {np.count_nonzero(weights)} operations")
    level = values.get("m", _STRONGEST)
    return _RandAugment(style, kinds, weights, level=level, layers=layers, probability=probability)


def _aug_mix(style: _Style, values: dict) -> _AugMix:
    width, alpha = values.get("w", 3), values.get("a", 1.0)
    if width < 1 or alpha <= 0:
        raise ConfigError(f"TimmAutoAugment.config_str: w{width}, a{alpha:g}: both must be above 0")
    return _AugMix(style, level=values.get("m", 3.0), width=width, depth=values.get("d", 0), alpha=alpha)


def _auto_augment(style: _Style, name: str) -> _AutoAugment:
    table, posterize = _TABLES[name]
    renamed = {"Posterize": posterize}
    return _AutoAugment(style, [[(renamed.get(kind, kind), p, level) for kind, p, level in row] for row in table])


def _one_or_three(values: list) -> list:
    if len(values) not in (1, 3):
        raise ValueError("there should be 1 value, or 3")
    return values


@TRANSFORMS.register()
class TimmAutoAugment:
    """RandAugment, AutoAugment, 3-Augment or AugMix by timm's string, for instance rand-m9-mstd0.5-inc1.

    - rand: m level (10), n operations (2), p probability of each (0.5), mstd spread of the level (0; above
      100 uniform below it), mmax where levels are cut (10), inc1 kinds that grow stronger with the level,
      w0 PLSC's weights, or one of timm's sets tweights, t3a, t3aw.
    - v0, v0r, original, originalr, 3a: AutoAugment's policies, with mstd; r with the other posterize.
    - augmix: m level (3), w chains (3), d operations of each (0: 1 to 3), a of the Dirichlet and Beta
      distributions (1), mstd (uniform, as in timm; PLSC: 0). b is accepted: the mixture is the same.

    Args:
        interpolation: of shears, translations and rotations; random draws bilinear or bicubic.
        mean: of the pixels, 0 … 1, the colour of what comes in at the edges; a value a channel or one.
    """

    def __init__(
        self,
        config_str: str = "rand-m9-mstd0.5-inc1",
        interpolation: Literal["nearest", "bilinear", "bicubic", "random"] = "bicubic",
        mean: Annotated[tuple[Fraction, ...], AfterValidator(_one_or_three)] = (0.485, 0.456, 0.406),
    ):
        name, values = _parse(config_str)
        style = _Style(
            resample=_filters(interpolation),
            colour=_colour(mean),
            level_std=values.get("mstd", np.inf if name == "augmix" else 0.0),
            highest_level=values.get("mmax") or _STRONGEST,
            translation=0.3 if name == "augmix" else 0.45,
        )
        self.augment: Callable[[np.ndarray, np.random.Generator], np.ndarray]
        if name == "rand":
            self.augment = _rand_augment(style, values)
        elif name == "augmix":
            self.augment = _aug_mix(style, values)
        else:
            self.augment = _auto_augment(style, name)

    def __call__(self, image, rng):
        return self.augment(image, rng)


def _filters(interpolation: str) -> tuple:
    names = ("bilinear", "bicubic") if interpolation == "random" else (interpolation,)
    return tuple(RESAMPLING[name] for name in names)


def _colour(mean) -> tuple[int, int, int]:
    red, green, blue = (round(255 * value) for value in (mean if len(mean) == 3 else [*mean] * 3))
    return red, green, blue
