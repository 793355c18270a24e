"""Whether an export computes what its model does, measured on real pictures."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import paddle
from sklearn.datasets import load_sample_images

from plsc import loading
from plsc.data.preprocess import Preprocess
from plsc.data.transforms.geometry import resize
from plsc.errors import CheckpointError, DataError, DeviceError
from plsc.loading import LoadedModel
from plsc.models.base import Deployable, Model
from plsc.models.init import undrawn
from plsc.models.spec import pair
from plsc.predictor import Predictor, normalised

BATCHES = (1, 7)  # that are compared where the batch is free
TOLERANCE = 1e-4  # of logits, between the export and the model whose weights it holds
HALF_TOLERANCE = 0.01  # of logits, between float16 weights and the model's own, as a fraction of the largest

_OPEN_SIZE = 224  # at which a model without any size is compared


@dataclass(frozen=True)
class Case:
    """Images [B, C, H, W], and the logits [B, classes] that are expected for them."""

    images: np.ndarray
    expected: np.ndarray


@dataclass(frozen=True)
class Comparison:
    """One batch through the export's own runtime, and what the model computes.

    Attributes:
        batch, height, width: of the images. reference: what the export is compared with.
        difference: the largest of two logits. largest: the reference's largest logit, by magnitude.
        same_top1: pictures whose first class is the same. tolerance: bound of the difference.
    """

    batch: int
    height: int
    width: int
    reference: str
    difference: float
    largest: float
    same_top1: int
    tolerance: float

    @classmethod
    def of(cls, logits: np.ndarray, case: Case, reference: str, tolerance: float) -> "Comparison":
        batch, _, height, width = case.images.shape
        return cls(
            batch=batch,
            height=height,
            width=width,
            reference=reference,
            difference=float(np.abs(logits - case.expected).max()),
            largest=float(np.abs(case.expected).max()),
            same_top1=int((logits.argmax(axis=1) == case.expected.argmax(axis=1)).sum()),
            tolerance=tolerance,
        )

    @property
    def agrees(self) -> bool:
        return self.difference <= self.tolerance  # false for nan, too

    def __str__(self) -> str:
        return (
            f"batch {self.batch} at {self.height}x{self.width} against {self.reference}: largest difference "
            f"{self.difference:.1e} of logits up to {self.largest:.3g} (tolerance {self.tolerance:.1e}), "
            f"top-1 equal for {self.same_top1} of {self.batch}"
        )


def cases(loaded: LoadedModel, batches: Sequence[int], *, dynamic: bool) -> list[Case]:
    """Real pictures as the model takes them, with what it makes of them; if dynamic, at another size too."""
    height, width = own = loaded.card.img_size or (_OPEN_SIZE, _OPEN_SIZE)
    lower_and_wider = max(1, height - height // 4), width + width // 4
    other = loaded.network.other_size if isinstance(loaded.network, Deployable) else lower_and_wider
    made = []
    for size in (own, other) if dynamic else (own,):
        network = _at(loaded, size)
        for images in (sample_images(count, loaded, size) for count in batches):
            made.append(Case(images, _logits(network, images)))
    return made


def compare(
    network: Model, exported: Predictor, cases: list[Case], precision: str, tolerance: float
) -> list[Comparison]:
    """Compare an export with the model. Raises DeviceError where they differ.

    An export of float16 weights is compared with the model that has the same weights as float32, to the tolerance,
    and with the model as it was, to HALF_TOLERANCE.
    """
    comparisons = []
    for case in cases:
        logits = exported.run(case.images)
        if precision == "fp32":
            comparisons.append(Comparison.of(logits, case, "the model", tolerance))
            continue
        rounded = Case(case.images, _logits(network, case.images))
        comparisons.append(Comparison.of(logits, rounded, "its float16 weights, computed in float32", tolerance))
        bound = HALF_TOLERANCE * float(np.abs(case.expected).max())
        comparisons.append(Comparison.of(logits, case, "the float32 model", bound))
    if not all(comparison.agrees for comparison in comparisons):
        listed = "".join(f"\n  {comparison}" for comparison in comparisons)
        raise DeviceError(
            f"the {exported.kind} export does not compute what the model does; nothing is written:{listed}"
        )
    return comparisons


def check_preprocess(loaded: LoadedModel) -> None:
    """Raise CheckpointError for a preprocessing that leaves no picture of the model's size, however large it is."""
    preprocess, size = loaded.required_preprocess(), loaded.card.img_size
    if takes_any_size(loaded) or size is None or (preprocess.resize is None and preprocess.crop is None):
        return  # whoever sends pictures sees to their size
    [picture] = sample_pictures(1, channels(loaded))
    remedy = (
        f"the model takes {size[0]}x{size[1]}: correct resize or crop, in the preprocess.json beside the weights or, "
        "where these say nothing, in the recipe's DataLoader.Eval"
    )
    try:
        sides = preprocess(_large(picture, preprocess, size)).shape[:2]
    except DataError as error:
        raise CheckpointError(f"{loaded.path}: its preprocessing refuses every picture: {error}; {remedy}") from error
    if sides != size:
        raise CheckpointError(
            f"{loaded.path}: its preprocessing makes pictures of {sides[0]}x{sides[1]} pixels; {remedy}"
        )


def takes_any_size(loaded: LoadedModel) -> bool:
    """Whether the model itself takes images of any size."""
    return "img_size" not in loaded.card.spec


def channels(loaded: LoadedModel) -> int:
    """Of the model's images: of its spec, else as many as the preprocessing has means."""
    return loaded.card.spec.get("in_chans") or len(loaded.required_preprocess().mean)


def sample_pictures(count: int, channels: int) -> list[np.ndarray]:
    """Real pictures [427, 640, channels] uint8: scikit-learn's two photos, then the same moved sideways."""
    photos = [photo[..., np.arange(channels) % 3] for photo in load_sample_images().images]
    return [np.roll(photos[k % 2], 97 * (k // 2), axis=1) for k in range(count)]


def sample_images(count: int, loaded: LoadedModel, size: tuple[int, int]) -> np.ndarray:
    """Real pictures as the model takes them at this size [B, C, H, W] float32."""
    preprocess, pixels = loaded.required_preprocess(), []
    for picture in sample_pictures(count, channels(loaded)):
        try:
            prepared = preprocess(picture)
        except DataError:  # smaller than the crop
            prepared = preprocess(_large(picture, preprocess, size))
        pixels.append(resize(prepared, *size, "bilinear", "cv2"))
    return normalised(np.stack(pixels), preprocess)


def _large(picture: np.ndarray, preprocess: Preprocess, size: tuple[int, int]) -> np.ndarray:
    """The picture larger than resize and crop, in the proportions of the crop, else of the model's `size`."""
    height, width = preprocess.crop or size
    asked = [side for field in (preprocess.resize, preprocess.crop) if field is not None for side in pair(field)]
    factor = -(-max(asked) // min(height, width)) + 1
    return resize(picture, factor * height, factor * width, "bilinear", "cv2")


def _at(loaded: LoadedModel, size: tuple[int, int]) -> Model:
    """The model at another size, as evaluation at that resolution makes it."""
    if size == loaded.card.img_size or takes_any_size(loaded):
        return loaded.network
    with undrawn():
        network = loading.built(loaded.card.model or "", {**loaded.card.spec, "img_size": size})
    position = loaded.card.position or "bicubic"
    loading.load_pretrained(network, loaded.source, strict=True, resized=True, position=position)
    network.eval()
    return network


@paddle.no_grad()
def _logits(network: Model, images: np.ndarray) -> np.ndarray:
    return network(paddle.to_tensor(images)).astype("float32").numpy()
