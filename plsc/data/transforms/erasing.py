"""Random erasing, drawn with each sample and applied to whole batches on the device.

Paddle is imported where the device works: what only prepares pictures does without it.
"""

import math
from typing import TYPE_CHECKING, Literal

import numpy as np

from plsc.bounds import Fraction, PartOfWhole, Positive
from plsc.data.transforms.base import DeviceTransform
from plsc.data.transforms.draws import log_uniform
from plsc.errors import ConfigError
from plsc.registry import TRANSFORMS

if TYPE_CHECKING:
    from paddle import Tensor

_TILE_KEY = 0x706C7363  # fixes the noise of mode pixel, for ever and on every machine


@TRANSFORMS.register()
class RandomErasing(DeviceTransform):
    """Overwrite a rectangle of the normalised picture, with probability EPSILON (Zhong et al., 2020).

    It follows NormalizeImage. The keys are PLSC's, with timm's names beside them; timm's boxes have
    use_log_aspect: True and attempt: 10. A box that reaches across the picture is drawn again.

    Args:
        EPSILON: probability of erasing anything; also `probability`.
        sl, sh: limits of the erased part of the area; also `min_area`, `max_area`.
        r1: least height / width, the largest is 1 / r1; also `min_aspect`.
        attempt: boxes that are tried before none is erased.
        use_log_aspect: draw the logarithm of height / width uniformly, instead of itself.
        mode: what is written: const `mean`; rand a normal value a channel; pixel a normal value a pixel.
        mean: of mode const, in units of the normalised picture; a value a channel, or one.
        count: 1 to this many boxes, which share the area.
    """

    def __init__(
        self,
        EPSILON: Fraction = 0.5,
        sl: Fraction = 0.02,
        sh: Fraction = 0.4,
        r1: PartOfWhole = 0.3,
        mean: tuple[float, ...] = (0.0,),
        attempt: Positive = 100,
        use_log_aspect: bool = False,
        mode: Literal["const", "rand", "pixel"] = "const",
        count: Positive = 1,
    ):
        if sl > sh:
            raise ConfigError(f"RandomErasing.sl is {sl}, which is above sh, {sh}")
        self.probability, self.area, self.attempts, self.count = EPSILON, (sl, sh), attempt, count
        self.aspect, self.use_log_aspect, self.mode, self.mean = (r1, 1.0 / r1), use_log_aspect, mode, tuple(mean)
        self._tile: Tensor | None = None
        self._tile_of: tuple[int, int, int] | None = None

    def fields(self, height: int, width: int, channels: int) -> dict[str, tuple[tuple, str]]:
        """Name → (shape, type) of the arrays that every sample carries for a picture of this size.

        Raises:
            ConfigError: `mean` has another number of values than the picture has channels.
        """
        if len(self.mean) not in (1, channels):
            raise ConfigError(
                f"RandomErasing.mean has {len(self.mean)} values; it takes one, or {channels}: one a channel"
            )
        fields: dict[str, tuple[tuple[int, ...], str]] = {"erase_boxes": ((self.count, 4), "int16")}
        if self.mode == "rand":
            fields["erase_values"] = ((self.count, channels), "float32")
        elif self.mode == "pixel":
            fields["erase_noise"] = ((2,), "int16")
        return fields

    def draw(self, rng, height: int, width: int, channels: int) -> dict[str, np.ndarray]:
        """One sample's arrays: boxes (top, left, height, width) with height 0 for none, and what mode needs."""
        arrays = {"erase_boxes": np.zeros((self.count, 4), "int16")}
        if rng.random() < self.probability:
            number = int(rng.integers(1, self.count + 1))
            for i in range(number):
                arrays["erase_boxes"][i] = self._box(rng, height, width, height * width / number)
        if self.mode == "rand":
            arrays["erase_values"] = rng.standard_normal((self.count, channels), dtype=np.float32)
        elif self.mode == "pixel":
            arrays["erase_noise"] = rng.integers((height + 1, width + 1)).astype("int16")
        return arrays

    def _box(self, rng, height: int, width: int, area: float) -> tuple[int, int, int, int]:
        for _ in range(self.attempts):
            target = area * rng.uniform(*self.area)
            aspect = log_uniform(self.aspect, rng) if self.use_log_aspect else rng.uniform(*self.aspect)
            box_height, box_width = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
            if box_height < height and box_width < width:
                top = int(rng.integers(height - box_height + 1))
                left = int(rng.integers(width - box_width + 1))
                return top, left, box_height, box_width
        return 0, 0, 0, 0

    def apply(self, image, arrays):
        """Erase in a batch.

        Args:
            image: [B, C, H, W] float32.
            arrays: name → tensor [B, …] of what `draw` returned for each sample.
        """
        import paddle

        from plsc.data.boxes import inside
        from plsc.tensors import on_device

        with paddle.no_grad():
            masks = inside(arrays["erase_boxes"], *image.shape[2:])
            if self.mode == "rand":
                for i in range(self.count):
                    values = arrays["erase_values"][:, i].unsqueeze([-1, -2])
                    image = paddle.where(masks[:, i : i + 1], values, image)
                return image
            erased = masks.any(axis=1, keepdim=True)
            if self.mode == "pixel":
                return paddle.where(erased, self._noise(image, arrays["erase_noise"]), image)
            mean = on_device(np.asarray(self.mean, "float32").reshape(1, -1, 1, 1))
            return paddle.where(erased, mean, image)

    def _noise(self, image, offsets):
        """[B, C, H, W]: each sample's window, at its (top, left), of one tile twice as high and wide.

        Normal values of their own for each sample would have to be drawn on the host and moved to the
        device, or would not belong to the sample but to its place in a batch.
        """
        import paddle

        channels, height, width = image.shape[1:]
        if self._tile is None or self._tile_of != (height, width, channels):
            rng = np.random.Generator(np.random.Philox(key=_TILE_KEY))
            self._tile = paddle.to_tensor(rng.standard_normal((4 * height * width, channels), dtype=np.float32))
            self._tile_of = (height, width, channels)
        offsets = offsets.astype("int32")
        rows = offsets[:, :1] + paddle.arange(height, dtype="int32")
        columns = offsets[:, 1:] + paddle.arange(width, dtype="int32")
        places = rows.unsqueeze(2) * (2 * width) + columns.unsqueeze(1)
        noise = paddle.gather(self._tile, places.flatten())
        return noise.reshape([-1, height, width, channels]).transpose([0, 3, 1, 2])
