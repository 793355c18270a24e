"""Attention on pictures: rollout, layer by layer or head by head, laid over what the model saw."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import paddle
from matplotlib import colormaps

from plsc.data.device import DeviceInput
from plsc.data.preprocess import Preprocess
from plsc.errors import ConfigError
from plsc.models.base import AttentionMaps, AttentionPool, Model
from plsc.models.spec import pair
from plsc.predictor import probabilities
from plsc.targets import Activation
from plsc.tensors import to_numpy
from plsc.visualize import rollout, sheet
from plsc.visualize.pictures import PatchSpec, Picture, covered
from plsc.visualize.subject import Drawable, Subject, read_pictures, subject_of

_READER = {
    "token": "what the class token reads",
    "avg": "what the mean of the patch tokens reads",
    "all": "what the mean of all tokens reads",
    "token_avg": "what the class token and the mean of the patch tokens read",
    "map": "what the attention pool reads",
}
_COLOURS, _OPACITY = "inferno", 0.6


@dataclass
class Seen:
    """What a model makes of one picture. Shapes: H heads, N tokens.

    Attributes:
        weights: [H, N, N] of each layer, float32; rows sum to one.
        reading: [N], see rollout.reading.
        prediction: the class with the largest logit; None for a model without a head.
        probability: of that class; None where it is unknown what makes probabilities of logits.
    """

    weights: list[np.ndarray]
    reading: np.ndarray
    prediction: int | None
    probability: float | None = None


def model_input(preprocess: Preprocess, picture: Picture) -> paddle.Tensor:
    """A picture as the model takes it: [1, C, height, width] float32."""
    return DeviceInput(preprocess).normalize(paddle.to_tensor(np.ascontiguousarray(picture.pixels[np.newaxis])))


def attention_weights(network: Model, image: paddle.Tensor) -> list[np.ndarray]:
    """One image [1, C, height, width] → [H, N, N] of each layer, float32; rows sum to one."""
    assert isinstance(network, AttentionMaps)
    return [to_numpy(layer)[0] for layer in network.attention_maps(image)]


@paddle.no_grad()
def look(network: Model, preprocess: Preprocess, picture: Picture, activation: Activation | None = None) -> Seen:
    """Run the model on one picture; `activation` is what makes probabilities of its logits."""
    spec: Any = network.spec  # see pictures.PatchSpec
    image = model_input(preprocess, picture)
    weights = attention_weights(network, image)
    tokens = network.forward_features(image)
    pool_weights = None
    if isinstance(network, AttentionPool) and spec.pool == "map":
        pool_weights = to_numpy(network.pool_weights(tokens))[0]
    reading = rollout.reading(spec.pool, tokens.shape[1], spec.prefix_tokens, pool_weights)
    if not spec.class_num:
        return Seen(weights, reading, None)
    logits = to_numpy(network.forward_head(tokens))
    prediction = int(logits[0].argmax())
    probability = None if activation is None else float(probabilities(logits, activation)[0, prediction])
    return Seen(weights, reading, prediction, probability)


@dataclass(frozen=True)
class View:
    """Which maps are drawn of each picture. Attributes: as the arguments of `draw_attention`."""

    spec: PatchSpec
    by: Literal["rollout", "layer", "head"] = "rollout"
    layer: int | None = None
    raw: bool = False

    def check(self, pictures: int) -> None:
        """Raise ConfigError where there is no such view, or the maps of so many pictures are too many."""
        if self.raw and self.by == "rollout":
            raise ConfigError("--raw goes with --by layer or --by head: a rollout is made of all layers")
        if self.layer is not None and self.by != "head":
            raise ConfigError("--layer goes with --by head")
        if self.layer is not None and not 1 <= self.layer <= self.spec.depth:
            raise ConfigError(f"--layer {self.layer}: the model has the layers 1 to {self.spec.depth}")
        sheet.check_count(pictures * (1 + len(self.names)), "give fewer pictures")

    @property
    def names(self) -> list[str]:
        """Of the maps."""
        if self.by == "rollout":
            return ["rollout"]
        count = self.spec.depth if self.by == "layer" else self.spec.num_heads
        return [f"{self.by} {n}" for n in range(1, count + 1)]

    @property
    def title(self) -> str:
        """What the sheet shows, in words."""
        spec = self.spec
        whose = {"layer": "each layer", "head": f"each head of layer {self.layer or spec.depth}"}.get(self.by)
        if self.by == "rollout":
            what = f"Attention rollout through {spec.depth} layers"
        else:
            what = f"Attention of {whose}" if self.raw else f"Attention rollout up to {whose}"
        return f"{what}: {_READER[spec.pool]}"

    def maps(self, seen: Seen) -> np.ndarray:
        """[maps, rows, columns] over the patches, each a multiple of its mean."""
        if self.by == "head":
            layer = (self.layer or self.spec.depth) - 1
            joint = seen.weights[layer] if self.raw else rollout.head_rollout(seen.weights, layer)
        elif self.raw:
            joint = np.stack([weights.mean(axis=0) for weights in seen.weights])
        else:
            joint = rollout.rollout(seen.weights)
        if self.by == "rollout":
            joint = joint[-1:]
        return rollout.patch_map(seen.reading, joint, self.spec.prefix_tokens, self.spec.grid)


def draw_attention(
    model: Drawable,
    pictures: Sequence[str | Path],
    output: str | Path,
    *,
    by: Literal["rollout", "layer", "head"] = "rollout",
    layer: int | None = None,
    raw: bool = False,
    class_names: str | Path | None = None,
) -> Path:
    """Draw which parts of pictures a model attends to: one sheet, each picture with its prediction and its maps.

    Args:
        model: a path of weights, or a model of plsc.load_model.
        pictures: files. output: a .png or .svg file.
        by: rollout through all layers; layer, the rollout up to each; head, up to each head of one layer.
        layer: of by="head", 1 is the first; None the last.
        raw: the attention weights of the layer or head themselves, without the layers before.
        class_names: a file with a name a line, for the titles; by default what the weights state.

    Returns:
        The file that was written.

    Raises:
        CheckpointError: the weights cannot be read.
        ConfigError: the model has no attention that can be drawn, or it is unknown how pictures enter it.
        DataError: a file is not a picture, or does not fit the model.

    Example:
        draw_attention("output/flowers", ["rose.jpg", "tulip.jpg"], "sheet.png")
        draw_attention(plsc.load_model("deit.npz", img_size=448, config=config), ["rose.jpg"], "heads.svg", by="head")
    """
    subject = subject_of(model, class_names=class_names)
    network = subject.attentive()
    view = View(subject.spec, by=by, layer=layer, raw=raw)
    view.check(pictures=len(pictures))
    return _draw(subject, network, view, read_pictures(subject, pictures), Path(output))


def _draw(subject: Subject, network: Model, view: View, pictures: Sequence[Picture], output: Path) -> Path:
    spec, names = subject.spec, view.names
    side_by_side, columns, lines = sheet.arrange(len(pictures), 1 + len(names))
    rows = lines * -(-len(pictures) // side_by_side)
    width = min(2.3, max(1.4, 15.0 / (columns * side_by_side)))  # of one panel, in inches
    height, across = pair(spec.img_size)
    figure = sheet.new(
        side_by_side * columns * width + 1.0,
        rows * (width * height / across + 0.42) + 0.6,
        f"{subject.name}\n{view.title}",
    )
    axes = figure.subplots(rows, side_by_side * columns, squeeze=False)
    for axis in axes.flat:
        sheet.without_frame(axis)
    for i, picture in enumerate(pictures):
        seen = look(network, subject.preprocess, picture, subject.card.activation)
        top, left = (i // side_by_side) * lines, (i % side_by_side) * columns
        first, *others = axes[top : top + lines, left : left + columns].flat
        first.imshow(picture.shown)
        caption = ""
        if seen.prediction is not None:
            share = "" if seen.probability is None else f", {100 * seen.probability:.1f} %"
            caption = f"\n→ {sheet.plain(subject.class_name(seen.prediction), width - 0.6)}{share}"
        sheet.set_title(first, sheet.plain(picture.name, width) + caption, 8)
        for axis, name, values in zip(others, names, view.maps(seen), strict=False):
            axis.imshow(overlaid(picture.grey, values, covered(spec)))
            sheet.set_title(axis, f"{name}\n{values.min():.2g} to {values.max():.2g} × the mean", 8)
    sheet.bar(
        figure,
        axes,
        low=0.0,
        high=1.0,
        colours=_COLOURS,
        label="attention to the patch",
        ticks=[0.0, 1.0],
        names=["lowest\nof the map", "highest\nof the map"],
        shrink=min(1.0, 3.0 / (rows * width)),
        fraction=0.2 / (side_by_side * columns * width),
        pad=0.01,
        aspect=18,
    )
    return sheet.save(figure, output)


def overlaid(grey: np.ndarray, values: np.ndarray, extent: tuple[int, int]) -> np.ndarray:
    """A map in colour over a picture in grey: [height, width, 3] between 0 and 1.

    Args:
        grey: [height, width] uint8.
        values: [rows, columns], coloured from their lowest to their highest, bilinear between the patches' centres.
        extent: (height, width) in pixels, from the upper left corner, that the patches cover; the rest stays grey.
    """
    bottom, right = extent
    span = values.max() - values.min()
    scaled = (values - values.min()) / (span if span > 0 else 1.0)
    fine = cv2.resize(scaled.astype("float32"), (right, bottom), interpolation=cv2.INTER_LINEAR)
    shown = np.repeat(grey[..., np.newaxis] / 255.0, 3, axis=2)
    colours = colormaps[_COLOURS](fine)[..., :3]
    shown[:bottom, :right] = (1.0 - _OPACITY) * shown[:bottom, :right] + _OPACITY * colours
    return shown
