"""Mixup and CutMix of whole batches on the device, before they are split into micro-batches.

The draws come from a NumPy generator of (seed, step, process), so a continued run mixes alike.
Pictures are [B, C, H, W] float32, targets become dense [B, classes].

With mode batch, one draw holds for all samples of a batch; with elem, each sample has its own share,
box and decision whether it is mixed at all, as in timm. A sample's partner is another of its batch.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import paddle

from plsc.bounds import BelowOne, Fraction, PositiveFloat
from plsc.data.boxes import inside
from plsc.errors import ConfigError
from plsc.registry import BATCH_TRANSFORMS, KeysOf
from plsc.tensors import on_device

Mode = Literal["batch", "elem"]


@dataclass
class _Mixture:
    """How each of B samples is mixed with its partner.

    Attributes:
        blend: [B] the partner's weight in every pixel.
        boxes: [B, 4] top, left, height and width of the box in which the partner's weight is 1.
        share: [B] the sample's share in its target.
    """

    blend: np.ndarray
    boxes: np.ndarray
    share: np.ndarray

    @classmethod
    def none(cls, size: int) -> "_Mixture":
        """Every sample as it is."""
        return cls(np.zeros(size), np.zeros((size, 4), "int32"), np.ones(size))

    def where(self, chosen, other: "_Mixture") -> "_Mixture":
        """This for the chosen samples, [B] bool, the other for the rest."""
        return _Mixture(
            np.where(chosen, self.blend, other.blend),
            np.where(chosen[:, None], self.boxes, other.boxes),
            np.where(chosen, self.share, other.share),
        )

    def apply(self, image, target, rng):
        """Mix a batch, each sample with a partner of a random permutation."""
        partner = on_device(rng.permutation(len(self.share)))
        blend, share = (on_device(a.astype("float32").reshape(-1, 1)) for a in (self.blend, self.share))
        boxes = on_device(self.boxes).unsqueeze(1)
        weight = blend.unsqueeze([-1, -1]) + inside(boxes, *image.shape[2:]).astype("float32")
        image = image + (paddle.index_select(image, partner) - image) * weight
        return image, target * share + paddle.index_select(target, partner) * (1.0 - share)


class _Mixer(ABC):
    """A partner for each sample and a share: what Mixup and CutMix have in common.

    Args:
        alpha: the share of the first picture is drawn from Beta(alpha, alpha).
        prob: of mixing a batch, or with mode elem a sample, at all.
        epsilon: label smoothing y(1 - e) + e / C of the targets before mixing.
    """

    def __init__(self, alpha: float, prob: float, epsilon: float, mode: str):
        self.alpha, self.prob, self.epsilon, self.mode = alpha, prob, epsilon, mode

    @abstractmethod
    def mix(
        self, image: paddle.Tensor, other: paddle.Tensor, share: float, rng: np.random.Generator
    ) -> tuple[paddle.Tensor, float]:
        """A batch mixed with its partners; and the share of the first pictures' targets."""

    @abstractmethod
    def mixture(self, size: int, height: int, width: int, rng: np.random.Generator) -> _Mixture:
        """A mixture of its own for each sample."""

    @paddle.no_grad()
    def __call__(self, image, target, rng: np.random.Generator):
        """Images [B, C, H, W] and dense targets [B, classes] → mixed ones."""
        if self.epsilon:
            target = target * (1.0 - self.epsilon) + self.epsilon / target.shape[1]
        if self.mode == "elem":
            size = image.shape[0]
            mixed = rng.random(size) < self.prob
            mixture = self.mixture(size, image.shape[2], image.shape[3], rng)
            return mixture.where(mixed, _Mixture.none(size)).apply(image, target, rng)
        if rng.random() >= self.prob:
            return image, target
        share = float(rng.beta(self.alpha, self.alpha))
        partner = on_device(rng.permutation(image.shape[0]))
        image, share = self.mix(image, paddle.index_select(image, partner), share, rng)
        return image, target * share + paddle.index_select(target, partner) * (1.0 - share)


@BATCH_TRANSFORMS.register()
class Mixup(_Mixer):
    """share x picture + (1 - share) x partner (Zhang et al., 2018)."""

    def __init__(self, alpha: PositiveFloat = 1.0, prob: Fraction = 1.0, epsilon: BelowOne = 0.0, mode: Mode = "batch"):
        super().__init__(alpha, prob, epsilon, mode)

    def mix(self, image, other, share, rng):
        return image * share + other * (1.0 - share), share

    def mixture(self, size: int, height: int, width: int, rng) -> _Mixture:
        """Each sample's own share."""
        share = rng.beta(self.alpha, self.alpha, size)
        return _Mixture(1.0 - share, np.zeros((size, 4), "int32"), share)


@BATCH_TRANSFORMS.register()
class Cutmix(_Mixer):
    """A box of the partner, of (1 - share) of the area, pasted in (Yun et al., 2019)."""

    def __init__(self, alpha: PositiveFloat = 0.2, prob: Fraction = 1.0, epsilon: BelowOne = 0.0, mode: Mode = "batch"):
        super().__init__(alpha, prob, epsilon, mode)

    def mix(self, image, other, share, rng):
        top, bottom, left, right = self.box(image.shape[2], image.shape[3], share, rng)
        mask = np.zeros(image.shape[2:], dtype="float32")
        mask[top:bottom, left:right] = 1.0
        kept = 1.0 - (bottom - top) * (right - left) / (image.shape[2] * image.shape[3])
        return image + (other - image) * on_device(mask), kept

    def mixture(self, size: int, height: int, width: int, rng) -> _Mixture:
        """Each sample's own box."""
        top, bottom, left, right = self.box(height, width, rng.beta(self.alpha, self.alpha, size), rng)
        boxes = np.stack([top, left, bottom - top, right - left], axis=1).astype("int32")
        return _Mixture(np.zeros(size), boxes, 1.0 - boxes[:, 2] * boxes[:, 3] / (height * width))

    @staticmethod
    def box(height: int, width: int, share, rng) -> tuple:
        """(top, bottom, left, right), its centre uniform, cut at the picture's edges; one for each share."""
        side = np.sqrt(1.0 - share)
        half_height, half_width = ((length * side).astype("int64") // 2 for length in (height, width))
        count = np.shape(share) or None
        y, x = rng.integers(height, size=count), rng.integers(width, size=count)
        top, bottom = np.maximum(0, y - half_height), np.minimum(height, y + half_height)
        left, right = np.maximum(0, x - half_width), np.minimum(width, x + half_width)
        return top, bottom, left, right


_MIXERS = {"Mixup": Mixup, "Cutmix": Cutmix}


@BATCH_TRANSFORMS.register()
class TransformOpSampler:
    """One of Mixup and Cutmix, chosen by their prob for each batch, or with mode elem each sample; PLSC's name.

    What neither is chosen for stays as it is, its label too.
    """

    def __init__(
        self,
        Mixup: Annotated[dict | None, KeysOf(BATCH_TRANSFORMS, "Mixup", without=("mode",))] = None,
        Cutmix: Annotated[dict | None, KeysOf(BATCH_TRANSFORMS, "Cutmix", without=("mode",))] = None,
        mode: Mode = "batch",
    ):
        given = {"Mixup": Mixup, "Cutmix": Cutmix}
        self.mixers = [_MIXERS[name](**arguments) for name, arguments in given.items() if arguments is not None]
        if not self.mixers:
            raise ConfigError("TransformOpSampler chooses between Mixup and Cutmix; give at least one")
        self.chances, self.mode = [mixer.prob for mixer in self.mixers], mode
        if sum(self.chances) > 1.0 + 1e-9:
            raise ConfigError(f"TransformOpSampler: the probabilities {self.chances} must add up to at most 1")
        for mixer in self.mixers:
            mixer.prob = 1.0  # once it is chosen

    def __call__(self, image, target, rng):
        if self.mode == "elem":
            return self._mix_samples(image, target, rng)
        point = rng.random()
        for mixer, chance in zip(self.mixers, self.chances, strict=True):
            if point < chance:
                return mixer(image, target, rng)
            point -= chance
        return image, target

    @paddle.no_grad()
    def _mix_samples(self, image, target, rng):
        size = image.shape[0]
        points, edges = rng.random(size), np.cumsum([0.0, *self.chances])
        mixture, smoothing = _Mixture.none(size), np.zeros((size, 1), "float32")
        for mixer, start, stop in zip(self.mixers, edges[:-1], edges[1:], strict=True):
            chosen = (start <= points) & (points < stop)
            mixture = mixer.mixture(size, image.shape[2], image.shape[3], rng).where(chosen, mixture)
            smoothing[chosen] = mixer.epsilon
        image, target = mixture.apply(image, target, rng)
        if smoothing.any():  # of both labels of a mixture alike
            epsilon = on_device(smoothing)
            target = target * (1.0 - epsilon) + epsilon / target.shape[1]
        return image, target
