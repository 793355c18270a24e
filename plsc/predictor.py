"""A path → predictions: a checkpoint, a Paddle export or an ONNX export alike.

Paddle is imported only where a model needs it: an ONNX export predicts without.
"""

import collections
import contextlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn, TypeVar

import cv2
import numpy as np
from PIL import Image, ImageOps

from plsc import devices, environment, places, runtimes
from plsc.config import Config
from plsc.data import normalising
from plsc.data.class_names import read_class_names
from plsc.data.preprocess import Preprocess
from plsc.errors import CheckpointError, ConfigError, DataError
from plsc.files import read_bytes, read_json
from plsc.model_card import ModelCard
from plsc.places import EXPORT_DESCRIPTION

if TYPE_CHECKING:
    from plsc.inference import Mode
    from plsc.loading import LoadedModel

# a path, an encoded picture, pixels [H, W, C] or [H, W] uint8 (red, green, blue, or grey), or a picture of Pillow
Picture = str | os.PathLike | bytes | np.ndarray | Image.Image
AnyPicture = TypeVar("AnyPicture", bound=Picture)
Activation = Literal["softmax", "sigmoid"]

_READERS = 4  # threads that read pictures, at most


@dataclass(frozen=True)
class Prediction:
    """A class of a picture: its index among the logits, its name (else the index), its probability from 0 to 1."""

    index: int
    name: str
    probability: float


@dataclass
class Predictor:
    """Pictures → logits → classes. Made by `load_predictor`.

    Attributes:
        kind: checkpoint, paddle or onnx.
        path: the file that was read.
        forward: normalised images [B, C, H, W] float32 → logits [B, classes] float32, of any size that the model takes.
        size: (height, width) that pictures have after the preprocessing; None where any size is taken.
        channels: of the images; None where any number is taken.
        batch: rows that the model takes at a time; None for any number.
        unit: what height and width must be multiples of, where the model takes several sizes.
        card: what the weights say of themselves, preprocessing and class names included.
    """

    kind: str
    path: Path
    forward: Callable[[np.ndarray], np.ndarray]
    size: tuple[int, int] | None = None
    channels: int | None = None
    batch: int | None = None
    unit: int = 1
    card: ModelCard = field(default_factory=ModelCard)

    def predict(
        self,
        pictures: Picture | Iterable[Picture],
        *,
        topk: int = 5,
        batch_size: int = 32,
        activation: Activation | None = None,
        class_names: str | Path | None = None,
    ) -> list[list[Prediction]]:
        """The most probable classes of pictures.

        Args:
            pictures: one or several: paths, encoded pictures (bytes), pixels [H, W, C] or [H, W] uint8 (red, green,
                blue, or grey), or Pillow's pictures, of any size. Each is prepared as in evaluation.
            topk: classes of each picture.
            batch_size: pictures that go through the model together.
            activation: what makes probabilities of logits: softmax, which sum to one, or sigmoid, each class by itself.
                Default: what the training loss made of them.
            class_names: a file with a name a line, instead of those that the weights state.

        Returns:
            For each picture its classes, the most probable first; of equal ones the lower number first.

        Raises:
            ConfigError: it is unknown how pictures enter the model, or what makes probabilities of its logits.
            DataError: a picture cannot be read, or does not fit the model.

        Example:
            >>> [(first, *_)] = plsc.load_predictor("output/flowers").predict("rose.jpg")
            >>> first.name, first.probability
            ('rose', 0.93)
        """
        batches = self.stream(
            _several(pictures), topk=topk, batch_size=batch_size, activation=activation, class_names=class_names
        )
        return [predictions for batch in batches for _, predictions in batch]

    def stream(
        self,
        pictures: Iterable[AnyPicture],
        *,
        topk: int = 5,
        batch_size: int = 32,
        activation: Activation | None = None,
        class_names: str | Path | None = None,
        workers: int | None = None,
        on_damaged: Callable[[AnyPicture, Exception], None] | None = None,
    ) -> Iterator[list[tuple[AnyPicture, list[Prediction]]]]:
        """`predict` for any number of pictures: batches of (picture, its classes), in their order.

        Threads read ahead by two batches at most, so any number of pictures takes the same memory.

        Args:
            workers: threads that read pictures; default: 4, or the process's where these are fewer.
            on_damaged: called with each picture that cannot be read and its error; the picture is left out. By default
                it ends the stream with a DataError.
        """
        self.required_preprocess()
        card, activation = self.card, activation or self.card.activation
        if activation is None:
            raise ConfigError(
                f"{self.path}: does not say what makes probabilities of its logits; give activation='softmax' "
                "(they sum to one), or 'sigmoid' (each class by itself)"
            )
        for batch, logits in self._in_batches(pictures, batch_size, workers, on_damaged or _refuse):
            if class_names is not None:
                card, class_names = replace(card, class_names=read_class_names(class_names, logits.shape[1])), None
            rows = probabilities(logits, activation)
            yield [(picture, _best(row, topk, card)) for picture, row in zip(batch, rows, strict=True)]

    def logits(self, pictures: Picture | Iterable[Picture], *, batch_size: int = 32) -> np.ndarray:
        """Pictures → logits [B, classes] float32; arguments and errors as of `predict`."""
        parts = [logits for _, logits in self._in_batches(_several(pictures), batch_size, None, _refuse)]
        if not parts:
            raise DataError("no pictures were given")
        return np.concatenate(parts)

    def _in_batches(
        self,
        pictures: Iterable[AnyPicture],
        size: int,
        workers: int | None,
        on_damaged: Callable[[AnyPicture, Exception], None],
    ) -> Iterator[tuple[list[AnyPicture], np.ndarray]]:
        """Batches of (pictures, logits [B, classes]), in order. Pictures of different sizes go through separately."""
        preprocess = self.required_preprocess()
        batch: list[tuple[AnyPicture, np.ndarray]] = []

        def finished() -> tuple[list[AnyPicture], np.ndarray]:
            given, pixels = zip(*batch, strict=True)
            batch.clear()
            return list(given), self.run(normalised(np.stack(pixels), preprocess))

        for picture, result in _read_ahead(pictures, self.prepare, workers, 2 * size):
            if isinstance(result, Exception):
                on_damaged(picture, result)
                continue
            if batch and result.shape != batch[0][1].shape:
                yield finished()
            batch.append((picture, result))
            if len(batch) == size:
                yield finished()
        if batch:
            yield finished()

    def prepare(self, picture: Picture) -> np.ndarray:
        """One picture → pixels [H, W, C] uint8 as the model takes them, not yet normalised. Errors as of `predict`."""
        preprocess = self.required_preprocess()
        pixels = preprocess(_read(picture, preprocess.rgb))
        if self.channels == 1 and pixels.shape[2] == 3:
            if (pixels != pixels[..., :1]).any():
                raise DataError("has colours; the model takes grey pictures")
            pixels = pixels[..., :1]
        if self.channels == 3 and pixels.shape[2] == 1:
            pixels = np.repeat(pixels, 3, axis=2)
        if self.size is not None and pixels.shape[:2] != self.size:
            raise DataError(
                f"has {_shown(pixels.shape)} pixels after the preprocessing; the model takes {_shown(self.size)}"
            )
        return pixels

    def run(self, images: np.ndarray) -> np.ndarray:
        """Normalised images [B, C, H, W] → logits [B, classes] float32.

        Raises:
            DataError: the model does not take images of this shape.
        """
        images = np.ascontiguousarray(images, dtype="float32")
        if images.ndim != 4 or self.channels not in (None, images.shape[1]):
            wanted = f"[batch, {self.channels or 'channels'}, height, width]"
            raise DataError(f"{self.path}: takes images {wanted}, not {list(images.shape)}")
        if any(side % self.unit for side in images.shape[2:]):
            raise DataError(
                f"{self.path}: takes sizes that are multiples of {self.unit}, not {_shown(images.shape[2:])}"
            )
        if self.batch is None:
            return self.forward(images)
        parts = []
        for start in range(0, len(images), self.batch):
            part = images[start : start + self.batch]
            rows = np.resize(part, (self.batch, *part.shape[1:]))  # the last part is filled with copies
            parts.append(self.forward(rows)[: len(part)])
        return np.concatenate(parts)

    def required_preprocess(self) -> Preprocess:
        """The preprocessing. Raises ConfigError where it is unknown."""
        return self.card.required_preprocess(self.path)


def _read(picture: Picture, rgb: bool) -> bytes | np.ndarray:
    """A picture as the preprocessing takes it: encoded, or pixels [H, W, C] in the model's order of channels."""
    if isinstance(picture, (str, os.PathLike)):
        return read_bytes(Path(picture).expanduser())
    if isinstance(picture, bytes):
        return picture
    if isinstance(picture, Image.Image):
        picture = np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
    if picture.dtype != np.uint8 or picture.ndim not in (2, 3) or 0 in picture.shape:
        raise DataError(f"is {list(picture.shape)} of {picture.dtype}; pixels are [H, W, C] or [H, W] of uint8")
    picture = picture[..., np.newaxis] if picture.ndim == 2 else picture
    return picture if rgb else np.ascontiguousarray(picture[..., ::-1])


def _shown(size: Sequence[int]) -> str:
    return f"{size[0]}x{size[1]}"


def normalised(images: np.ndarray, preprocess: Preprocess) -> np.ndarray:
    """[B, H, W, C] uint8 → [B, C, H, W] float32, (pixel * scale - mean) / std as training computes it."""
    return normalising.normalised(images, *normalising.factor_and_offset(preprocess))


def is_export(path: str | Path) -> bool:
    """Whether a path means an exported model."""
    return places.exported_model(path) is not None


def load_predictor(
    path: str | Path,
    *,
    weights: Literal["model", "ema"] = "model",
    img_size: int | None = None,
    config: Config | None = None,
    device: str = "auto",
    inference: "Mode | None" = None,
    verify: bool = True,
) -> Predictor:
    """The predictor of a checkpoint, a run directory, anybody's weights, or an export.

    Args:
        path: whatever plsc.load_model takes, or an export's folder or file.
        weights: model, or ema for the averaged ones of a plsc checkpoint.
        img_size: another resolution in pixels; the preprocessing follows in proportion.
        config: a recipe that says the model of weights that do not. How pictures enter comes from the path itself and,
            only where that does not say it, from the recipe's DataLoader.Eval; where both differ, one warning says so.
        device: that the predictor runs on, and nothing else: cpu, gpu, gpu:1, …; auto is Paddle's present device, for
            an ONNX export CUDA where onnxruntime has it, and auto:1 the second of these.
        inference: on CPU, of anything but an export: auto goes on in Paddle Inference's graph once enough pictures have
            come to pay for making it; graph makes it with the first ones; dygraph goes without. Default: the recipe's
            Global.inference, else auto.
        verify: compare a plsc checkpoint's files with their checksums.

    Raises:
        CheckpointError: the path cannot be read, or does not fit what is asked of it.
        ConfigError: the recipe does not fit.
        DeviceError: there is no such device, or a library that the export needs is not installed.

    With inference: graph, predictions raise DeviceError where the model makes no graph.

    Example:
        >>> predictor = plsc.load_predictor("mine_onnx")
        >>> predictor.predict(["rose.jpg", "tulip.jpg"], topk=1)
    """
    file = places.exported_model(path)
    if file is None:
        from plsc import loading

        with _on(device):
            loaded = loading.load_model(path, weights=weights, img_size=img_size, config=config, verify=verify)
            return of_network(loaded, inference or (config.Global.inference if config else "auto"))
    if weights != "model":
        raise CheckpointError(
            f"{file}: an export holds one set of weights; `plsc export --ema` writes the averaged ones"
        )
    return _of_export(file, img_size, config, device)


def _on(device: str) -> contextlib.AbstractContextManager[object]:
    """Context on the device of Paddle that load_predictor is asked for."""
    return contextlib.nullcontext() if device.partition(":")[0] == "auto" else devices.on_device(device)


def of_network(loaded: "LoadedModel", inference: "Mode" = "dygraph") -> Predictor:
    """The predictor of a LoadedModel on the present device, whose weights must stay as they are but in dygraph.

    Raises CheckpointError where it has no head.
    """
    import paddle

    from plsc.inference import Inference
    from plsc.models.spec import pair

    network, spec = loaded.network, loaded.card.spec
    loaded.check_head()
    device = paddle.get_device()  # where its parameters are
    computed = Inference(inference if device == "cpu" else "dygraph", use="prediction")

    @paddle.no_grad()
    def forward(images: np.ndarray) -> np.ndarray:
        with devices.on_device(device):
            return computed.answer(network, paddle.to_tensor(images)).astype("float32").numpy()

    return Predictor(
        kind="checkpoint",
        path=loaded.path,
        forward=forward,
        size=pair(spec["img_size"]) if "img_size" in spec else None,
        channels=spec.get("in_chans"),
        card=loaded.card,
    )


def _of_export(file: Path, img_size: int | None, config: Config | None, device: str) -> Predictor:
    about = read_json(file.with_name(EXPORT_DESCRIPTION), dict, error=CheckpointError) or {}
    kind, shape = "onnx" if file.suffix == ".onnx" else "paddle", about.get("input_shape", [None] * 4)
    if kind == "onnx":
        forward, shape = runtimes.in_onnxruntime(file, device)
    else:
        with _on(device):
            forward = runtimes.in_paddle_inference(file)
    try:
        batch, channels, *size = shape
        stated = size if all(size) else about.get("img_size")
        own_size = None if stated is None else (int(stated[0]), int(stated[1]))
        unit = about.get("size_unit") or 1
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file.with_name('export.json')}: damaged: {error}") from error
    card = ModelCard.from_dict(about, file.with_name(EXPORT_DESCRIPTION))
    asked = own_size if img_size is None else (img_size, img_size)
    if all(size) and own_size is not None and asked != own_size:
        from plsc.models.spec import is_of_one_size

        other = "" if is_of_one_size(card.spec) else " or --resolution dynamic"
        raise CheckpointError(
            f"{file}: takes pictures of {_shown(own_size)} pixels only; export it with --resolution {img_size}{other}"
        )
    preprocess, activation = card.preprocess, card.activation
    if preprocess is not None and img_size is not None and asked != own_size:
        if own_size is None or own_size[0] != own_size[1]:
            shown = "any size" if own_size is None else f"{_shown(own_size)} pixels"
            raise CheckpointError(f"{file}: is for {shown}; another resolution needs a square one")
        preprocess = preprocess.enlarged(img_size, own_size[0])
    if config is not None:
        from plsc import build, loading

        side = asked[0] if asked is not None and asked[0] == asked[1] else None
        recipe = build.recipe_preprocess(config, side)
        preprocess = loading.preferred_preprocess(file, preprocess, recipe)
        activation = activation or build.activation(config)
    return Predictor(
        kind=kind,
        path=file,
        forward=forward,
        size=asked,
        channels=channels,
        batch=batch,
        unit=unit,
        card=replace(card, preprocess=preprocess, activation=activation),
    )


def _several(pictures: Picture | Iterable[Picture]) -> Iterable[Picture]:
    """One picture or several → several; of an array the number of dimensions decides."""
    if isinstance(pictures, np.ndarray):
        return pictures if pictures.ndim == 4 else [pictures]
    return [pictures] if isinstance(pictures, Picture) else pictures


def _refuse(picture: Picture, error: Exception) -> NoReturn:
    """End with the error of a picture, which is named where it is a file."""
    named = f"{picture}: " if isinstance(picture, (str, os.PathLike)) else ""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
    raise DataError(f"{named}{reason}") from error


def _best(probabilities: np.ndarray, topk: int, card: ModelCard) -> list[Prediction]:
    """The most probable classes of one picture; of equal ones the lower number first."""
    order = (-probabilities).argsort(kind="stable")[:topk].tolist()
    return [Prediction(k, card.class_name(k), float(probabilities[k])) for k in order]


def _read_ahead(
    pictures: Iterable[AnyPicture], prepare: Callable[[AnyPicture], np.ndarray], workers: int | None, most: int
) -> Iterator[tuple[AnyPicture, np.ndarray | Exception]]:
    """(picture, pixels or the error) of each picture, in order; at most `most` are held."""

    def read(picture: AnyPicture) -> np.ndarray | Exception:
        try:
            return prepare(picture)
        except (DataError, OSError, cv2.error) as error:
            return error

    pictures = iter(pictures)
    with ThreadPoolExecutor(workers or min(_READERS, environment.thread_count())) as pool:
        waiting = collections.deque((p, pool.submit(read, p)) for p in itertools.islice(pictures, most))
        while waiting:
            picture, future = waiting.popleft()
            yield picture, future.result()
            for following in itertools.islice(pictures, 1):
                waiting.append((following, pool.submit(read, following)))


def probabilities(logits: np.ndarray, activation: Activation) -> np.ndarray:
    """Logits [B, classes] → probabilities float64: by softmax, or by a sigmoid for each class by itself."""
    logits = logits.astype("float64")
    if activation == "sigmoid":
        return 0.5 * (1.0 + np.tanh(0.5 * logits))
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)
