"""A model → a folder that Paddle Inference or onnxruntime runs, checked against the model itself.

    inference.json, inference.pdiparams    (inference.pdmodel with Paddle 2)    or    model.onnx
    preprocess.json, classes.json          how pictures enter, and the names of the logits
    export.json                            what was exported, and what the check found

The graph's input `image` is the normalised float32 batch [B, C, H, W], its output the logits [B, classes].
"""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import paddle
from paddle import nn
from paddle.static import InputSpec
from sklearn.datasets import load_sample_images

import plsc
from plsc import build, loading, predictor
from plsc.config import Config
from plsc.data.preprocess import Preprocess
from plsc.data.transforms.geometry import resize
from plsc.errors import CheckpointError, ConfigError, DataError, DeviceError
from plsc.files import replacing_folder, write_json
from plsc.model_card import ModelCard
from plsc.models.base import Deployable, Model
from plsc.models.deploy import store_half
from plsc.models.spec import pair
from plsc.places import EXPORT_DESCRIPTION, ONNX_MODEL, PADDLE_MODELS
from plsc.registry import MODELS, missing_members
from plsc.runtimes import captured_output

BATCHES = (1, 7)  # that the check runs where the batch is free
TOLERANCE = 1e-4  # of logits, between the export and the model whose weights it holds
HALF_TOLERANCE = 0.01  # of logits, between float16 weights and the model's own, as a fraction of the largest

_OPSET = 17
_OPEN_SIZE = 224  # at which a model without any size is checked
_ONNX_LIMIT = 2**31 - 2**20  # bytes of weights: protobuf takes 2 GB, and the graph needs some
# all that an export may consist of; Paddle 2 writes inference.pdmodel and inference.pdiparams.info
_FILES = {
    *PADDLE_MODELS,
    "inference.pdiparams",
    "inference.pdiparams.info",
    ONNX_MODEL,
    "preprocess.json",
    "classes.json",
    EXPORT_DESCRIPTION,
}


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
    def of(cls, logits: np.ndarray, case: "Case", reference: str, tolerance: float) -> "Comparison":
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


@dataclass(frozen=True)
class Case:
    """Images of the check [B, C, H, W], and the logits [B, classes] that are expected for them."""

    images: np.ndarray
    expected: np.ndarray


@dataclass(frozen=True)
class Export:
    """An export that was written.

    Attributes:
        folder: where it is. source: the file of weights that it was made of.
        format: paddle or onnx. precision: fp32 or fp16.
        checks: the comparisons with the model, all within their tolerance.
    """

    folder: Path
    source: Path
    format: str
    precision: str
    checks: list[Comparison]


def export_model(
    weights: str | Path | None = None,
    output: str | Path | None = None,
    *,
    format: Literal["paddle", "onnx"] | None = None,
    config: Config | None = None,
    ema: bool = False,
    img_size: int | None = None,
    dynamic: bool = False,
    precision: Literal["fp32", "fp16"] = "fp32",
    tolerance: float = TOLERANCE,
) -> Export:
    """Write weights as a folder that Paddle Inference or onnxruntime runs, and check it there against the model.

    Args:
        weights: a run directory, a checkpoint, or anybody's weights; by default the configuration's.
        output: a folder, in which an earlier export is replaced; by default `export` in the configuration's run
            directory.
        format: by default the configuration's Export.export_type, else paddle.
        config: a configuration that states the model and how pictures enter it, for weights that do not.
        ema: the averaged weights of a plsc checkpoint.
        img_size: another image size than the model's in pixels, the position embedding being resized; dynamic: take
            any size. By default as the configuration's Export.input_shape, else the model's own size.
        precision: how weights are stored; the graph computes in float32 in any case.
        tolerance: of the logits' difference.

    Raises:
        CheckpointError: the weights cannot be read or exported so, or something else is in the output's place.
        ConfigError: it is unknown which weights to export, where to, or how pictures enter the model.
        DeviceError: a library is missing, or does not compute what the model does; nothing is written then.

    Example:
        plsc.export_model("output/mine", "mine_onnx", format="onnx", dynamic=True)
    """
    given = weights or (config and (config.Global.pretrained_model or config.Global.checkpoint))
    if not given:
        raise CheckpointError("no weights to export are given: name them, or as Global.pretrained_model of config")
    if output is None and config is None:
        raise ConfigError("the folder to export to is missing: give output (--output FOLDER)")
    folder = Path(output or Path(config.Global.output_dir) / "export")
    format = format or (config.Export.export_type if config else "paddle")
    batch = None
    if config is not None:
        batch, size = _input_shape(config)
        if img_size is None and not dynamic:
            img_size, dynamic = (None, True) if size == "dynamic" else (size, False)
    _check_request(given, folder, format, config, dynamic)
    before = paddle.get_device()
    paddle.set_device("cpu")  # where the check runs
    try:
        loaded = loading.load_model(given, weights="ema" if ema else "model", img_size=img_size, config=config)
        source = loaded.path
        checks = export(
            loaded,
            folder,
            format=format,
            weights="ema" if ema else "raw",
            precision=precision,
            dynamic=dynamic,
            batch=batch,
            tolerance=tolerance,
        )
    finally:
        paddle.set_device(before)
    return Export(folder, source, format, precision, checks)


def _check_request(weights, folder: Path, format: str, config: Config | None, dynamic: bool) -> None:
    """Raise for what is wrong before any weights are read."""
    if predictor.is_export(weights):
        raise CheckpointError(f"{weights}: is an export already; export the checkpoint that it was made of")
    _check_output(Path(os.path.abspath(folder.expanduser())))
    if format == "onnx":
        _import_paddle2onnx()
    if dynamic and config is not None and config.Global.position_embedding != "bicubic":
        raise config.error(
            ("Global", "position_embedding"),
            f"is {config.Global.position_embedding}; a dynamic export resizes it bicubic; give --resolution PIXELS",
        )


def _input_shape(config: Config) -> tuple[int | None, int | Literal["dynamic"] | None]:
    """Export.input_shape → (rows or None for any, image size: pixels, dynamic, or None for the model's own)."""
    shape, path = config.Export.input_shape, ("Export", "input_shape")
    if shape is None:
        return None, None
    if len(shape) != 4 or any(side == 0 for side in shape):
        raise config.error(path, f"is {shape}; it is [batch, channels, height, width], None being free")
    batch, channels, height, width = (None if side is None or side < 0 else side for side in shape)
    card = ModelCard(spec=config.Model.arguments, preprocess=build.recipe_preprocess(config))
    own, own_channels = card.img_size, card.spec.get("in_chans")
    if channels is not None and own_channels not in (None, channels):
        raise config.error(path, f"has {channels} channels, but Model.in_chans is {own_channels}")
    if (height, width) == own:
        return batch, None
    if height is None and width is None:
        return batch, "dynamic"
    if height != width:
        raise config.error(
            path, f"is {shape}; height and width are the model's {own and list(own)}, another square, or both None"
        )
    return batch, height


def export(
    loaded: loading.LoadedModel,
    output,
    *,
    format: str,
    weights: str = "raw",
    precision: str = "fp32",
    dynamic: bool = False,
    batch: int | None = None,
    tolerance: float = TOLERANCE,
) -> list[Comparison]:
    """Write a model, run it in its own runtime on real pictures, and put it in place if the logits agree.

    Paddle must be set to the CPU, where the check runs.

    Args:
        loaded: the model, which is used up: it is rewritten into the form that is exported.
        output: a folder; an earlier export that stands there is replaced.
        format: paddle or onnx.
        weights: which the model holds, raw or ema; for export.json.
        precision: fp32, or fp16: matrices and kernels are stored as float16. The graph makes float32 of them before
            it computes, since runtimes on CPU have no float16 kernels.
        dynamic: take pictures of any size; the position embedding is resized in the graph. So is every model that
            has no img_size, and whose preprocessing has neither a crop nor a resize to height and width.
        batch: a fixed number of rows; None for any.
        tolerance: of the logits' difference.

    Returns:
        What the check found.

    Raises:
        ConfigError: how pictures enter the model is unknown.
        CheckpointError: the model cannot be exported so, or something else stands in the output's place.
        DeviceError: a library is missing, or does not compute what the model does; nothing is written then.
    """
    output = Path(os.path.abspath(Path(output).expanduser()))
    _check_output(output)
    _check_model(loaded, format, precision)
    network, own_size = loaded.network, loaded.card.img_size
    dynamic = dynamic or own_size is None
    sizes = [own_size or (_OPEN_SIZE, _OPEN_SIZE)]
    _check_preprocess(loaded)
    if dynamic:
        _check_dynamic(loaded)
        sizes.append(_other_size(network, sizes[0]))
    cases = _cases(loaded, sizes, BATCHES if batch is None else (batch,))
    description = {**_description(loaded, format, precision, dynamic, batch), "weights": weights}
    if isinstance(network, Deployable):
        network.simplify(dynamic=dynamic, for_onnx=format == "onnx")
    if precision == "fp16":
        _store_half(network, loaded.path)
    try:
        with replacing_folder(output) as writing:
            _write_graph(network, writing, description)
            for name, content in {"export": description, **loaded.card.documents()}.items():
                write_json(writing / f"{name}.json", content)
            exported = predictor.load_predictor(writing, device="cpu")
            checks = _check(network, exported, cases, precision, tolerance)
            description["check"] = [dataclasses.asdict(comparison) for comparison in checks]
            write_json(writing / EXPORT_DESCRIPTION, description)
            _check_output(output)  # something else may have come into its place meanwhile
    except OSError as error:
        raise CheckpointError(f"{output}: could not be written: {error}") from error
    return checks


def _check_output(output: Path) -> None:
    """Raise CheckpointError where the output is anything but absent, empty, or an earlier export and nothing else."""
    if not output.is_dir():
        if output.exists():
            raise CheckpointError(f"{output}: is a file; an export is a folder")
        return
    present = sorted(path.name for path in output.iterdir())
    others = [name for name in present if name not in _FILES]
    if present and EXPORT_DESCRIPTION not in present:
        raise CheckpointError(f"{output}: holds something else than an export; choose another --output")
    if others:
        some = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
        raise CheckpointError(
            f"{output}: holds, beside an export, {some}, which would be lost with it; move that away, or choose "
            "another --output"
        )


def _check_model(loaded: loading.LoadedModel, format: str, precision: str) -> None:
    """Raise for what is known before anything is computed."""
    path = loaded.path
    loaded.check_head()
    if loaded.card.preprocess is None:
        raise ConfigError(f"{path}: {predictor.NEEDS_PREPROCESS}")
    if format != "onnx":
        return
    _import_paddle2onnx()
    width = {"fp32": 4, "fp16": 2}[precision]
    size = sum(width * p.size for p in loaded.network.parameters())
    if size > _ONNX_LIMIT:
        raise CheckpointError(
            f"{path}: its weights take {size / 1e9:.1f} GB, an ONNX file holds 2 GB; choose --precision fp16, which "
            "halves them, or --format paddle"
        )


def _takes_any_size(loaded: loading.LoadedModel) -> bool:
    """Whether the model itself takes images of any size."""
    return "img_size" not in loaded.card.spec


def _check_dynamic(loaded: loading.LoadedModel) -> None:
    """Raise CheckpointError for a model that cannot be exported for images of any size."""
    network, card = loaded.network, loaded.card
    if _takes_any_size(loaded):
        return
    if not isinstance(network, Deployable):
        missing = ", ".join(missing_members(network, Deployable))
        raise CheckpointError(
            f"{loaded.path}: an export for any image size needs {missing} of a model with a fixed img_size, which "
            f"{card.model} does not offer (see plsc.models.base.Deployable); give --resolution PIXELS"
        )
    unit = network.size_unit
    if any(side % unit for side in card.img_size):
        raise CheckpointError(
            f"{loaded.path}: a dynamic export of this model takes multiples of {unit} pixels, where its padding is "
            f"always the same; its own size, {card.spec['img_size']}, is none: export that alone"
        )
    if card.position != "bicubic":
        raise CheckpointError(
            f"{loaded.path}: its position embedding is resized {card.position}; a dynamic export resizes it "
            "bicubic; give --resolution PIXELS, or say Global.position_embedding: bicubic in the recipe of -c"
        )


def _other_size(network, own: tuple[int, int]) -> tuple[int, int]:
    """A lower and wider size than the model's own, for the check of a dynamic export."""
    if isinstance(network, Deployable):
        return network.other_size
    return max(1, own[0] - own[0] // 4), own[1] + own[1] // 4


def _channels(loaded: loading.LoadedModel) -> int:
    """Of the model's images: of its spec, else as many as the preprocessing has means."""
    return loaded.card.spec.get("in_chans") or len(loaded.card.preprocess.mean)


def _check_preprocess(loaded: loading.LoadedModel) -> None:
    """Raise CheckpointError for a preprocessing that leaves no picture of the model's size, however large it is."""
    preprocess = loaded.card.preprocess
    if _takes_any_size(loaded) or (preprocess.resize is None and preprocess.crop is None):
        return  # whoever sends pictures sees to their size
    (picture,) = sample_pictures(1, _channels(loaded))
    height, width = loaded.card.img_size
    remedy = (
        f"the model takes {height}x{width}: correct resize or crop, in the preprocess.json beside the weights or, "
        "where these say nothing, in the recipe's DataLoader.Eval"
    )
    try:
        sides = preprocess(_large(picture, preprocess, (height, width))).shape[:2]
    except DataError as error:
        raise CheckpointError(f"{loaded.path}: its preprocessing refuses every picture: {error}; {remedy}") from error
    if sides != (height, width):
        raise CheckpointError(
            f"{loaded.path}: its preprocessing makes pictures of {sides[0]}x{sides[1]} pixels; {remedy}"
        )


def _large(picture: np.ndarray, preprocess: Preprocess, size: tuple[int, int]) -> np.ndarray:
    """The picture larger than resize and crop, in the proportions of the crop, else of the model's `size`."""
    height, width = preprocess.crop or size
    asked = [side for field in (preprocess.resize, preprocess.crop) if field is not None for side in pair(field)]
    factor = -(-max(asked) // min(height, width)) + 1
    return resize(picture, factor * height, factor * width, "bilinear", "cv2")


def _import_paddle2onnx():
    try:
        with captured_output():
            import paddle2onnx
    except (ImportError, ValueError) as error:  # it refuses Paddle 2 by a ValueError
        raise DeviceError(
            f"--format onnx needs Paddle 3, paddle2onnx and onnxruntime: pip install paddle2onnx onnxruntime ({error})"
        ) from error
    return paddle2onnx


def sample_pictures(count: int, channels: int) -> list[np.ndarray]:
    """Real pictures [427, 640, channels] uint8: scikit-learn's two photos, then the same moved sideways."""
    photos = [photo[..., np.arange(channels) % 3] for photo in load_sample_images().images]
    return [np.roll(photos[k % 2], 97 * (k // 2), axis=1) for k in range(count)]


def sample_images(count: int, preprocess: Preprocess, channels: int, size: tuple[int, int]) -> np.ndarray:
    """Real pictures as a model of `size` takes them [B, C, H, W] float32."""
    pixels = []
    for picture in sample_pictures(count, channels):
        try:
            prepared = preprocess(picture)
        except DataError:  # smaller than the crop
            prepared = preprocess(_large(picture, preprocess, size))
        pixels.append(resize(prepared, *size, "bilinear", "cv2"))
    return predictor.normalised(np.stack(pixels), preprocess)


def _cases(loaded: loading.LoadedModel, sizes, batches) -> list[Case]:
    """The check's images at each size and batch, with what the model makes of them."""
    cases = []
    for size in sizes:
        network = _at(loaded, size)
        for count in batches:
            images = sample_images(count, loaded.card.preprocess, _channels(loaded), size)
            cases.append(Case(images, _logits(network, images)))
    return cases


def _at(loaded: loading.LoadedModel, size: tuple[int, int]) -> Model:
    """The model at another size, as evaluation at that resolution makes it."""
    if size == loaded.card.img_size or _takes_any_size(loaded):
        return loaded.network
    network = MODELS.get(loaded.card.model).factory(**{**loaded.card.spec, "img_size": size})
    loading.load_pretrained(network, loaded.source, strict=True, resized=True, position=loaded.card.position)
    network.eval()
    return network


@paddle.no_grad()
def _logits(network, images: np.ndarray) -> np.ndarray:
    return network(paddle.to_tensor(images)).astype("float32").numpy()


def _check(network, exported: predictor.Predictor, cases: list[Case], precision: str, tolerance: float):
    """Compare an export with the model. Raises DeviceError where they differ.

    An export of float16 weights is compared with the model that has the same weights as float32, to the tolerance,
    and with the model as it was, to HALF_TOLERANCE.
    """
    comparisons = []
    for case in cases:
        logits = exported.run(case.images)
        if precision == "fp16":
            rounded = Case(case.images, _logits(network, case.images))
            comparisons.append(Comparison.of(logits, rounded, "its float16 weights, computed in float32", tolerance))
            bound = HALF_TOLERANCE * float(np.abs(case.expected).max())
            comparisons.append(Comparison.of(logits, case, "the float32 model", bound))
        else:
            comparisons.append(Comparison.of(logits, case, "the model", tolerance))
    if not all(comparison.agrees for comparison in comparisons):
        listed = "".join(f"\n  {comparison}" for comparison in comparisons)
        raise DeviceError(
            f"the {exported.kind} export does not compute what the model does; nothing is written:{listed}"
        )
    return comparisons


def _description(loaded: loading.LoadedModel, format: str, precision: str, dynamic: bool, batch: int | None) -> dict:
    """The content of export.json, but for the check."""
    network, own_size = loaded.network, loaded.card.img_size
    height, width = (None, None) if dynamic else own_size
    unit = network.size_unit if isinstance(network, Deployable) else 1
    card = dataclasses.replace(loaded.card, origin=str(loaded.path)).without_documents()
    return {
        "format": format,
        "precision": precision,
        "computes_in": "fp32",
        "input": "image: float32 [batch, channels, height, width], (pixel * scale - mean) / std of preprocess.json",
        "output": "logits: float32 [batch, classes]",
        "input_shape": [batch, _channels(loaded), height, width],
        "img_size": own_size and list(own_size),
        "size_unit": unit if dynamic else None,
        **card.to_dict(),
        "versions": {"plsc": plsc.__version__, "paddle": paddle.__version__},
    }


def _store_half(network, path: Path) -> None:
    try:
        store_half(network)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error} holds values outside float16; choose --precision fp32") from error


def _write_graph(network, folder: Path, description: dict) -> None:
    """The model's files; adds to the description what wrote them."""
    shape = InputSpec(list(description["input_shape"]), "float32", "image")  # it writes into the list
    with captured_output():  # Paddle warns of its own parts
        paddle.jit.save(network, str(folder / "inference"), input_spec=[shape])
    if description["format"] == "paddle":
        return
    paddle2onnx = _import_paddle2onnx()
    description["versions"]["paddle2onnx"] = paddle2onnx.__version__
    file = folder / ONNX_MODEL
    with captured_output() as printed:
        try:
            # another optimize_tool would install packages by itself
            paddle2onnx.export(
                str(folder / "inference.json"),
                str(folder / "inference.pdiparams"),
                str(file),
                opset_version=_OPSET,
                optimize_tool="None",
            )
        except Exception as error:  # it logs what went wrong, and then stumbles over the missing result
            raise DeviceError(f"paddle2onnx cannot convert the model:\n{printed()}") from error
    _tidy(file, _norm_epsilon(network))
    for left in folder.glob("inference.*"):
        left.unlink()


def _norm_epsilon(network) -> float | None:
    """The epsilon of a model's GroupNorms and InstanceNorms; None where it has none.

    Raises:
        CheckpointError: they have several, which paddle2onnx loses.
    """
    kinds = (nn.GroupNorm, nn.InstanceNorm1D, nn.InstanceNorm2D, nn.InstanceNorm3D)
    epsilons = {layer._epsilon for layer in network.sublayers() if isinstance(layer, kinds)}
    if len(epsilons) > 1:
        some = ", ".join(map(str, sorted(epsilons)))
        raise CheckpointError(
            f"its GroupNorms have several epsilons ({some}), which paddle2onnx loses; choose --format paddle"
        )
    return epsilons.pop() if epsilons else None


def _tidy(file: Path, epsilon: float | None) -> None:
    """Name what a user of an ONNX file sees, drop constants that nothing reads, and repair a fault of paddle2onnx.

    Its 2.1.0 gives GroupNorm, which becomes InstanceNormalization, an epsilon from memory that was never written.
    """
    import onnx

    model = onnx.load(file)
    graph = model.graph
    old = graph.output[0].name
    graph.output[0].name = "logits"
    for node in graph.node:
        node.output[:] = ["logits" if name == old else name for name in node.output]
        if node.op_type == "InstanceNormalization":
            del node.attribute[:]
            node.attribute.append(onnx.helper.make_attribute("epsilon", epsilon))
    for value, names in (
        (graph.input[0], ("batch", "channels", "height", "width")),
        (graph.output[0], ("batch", "classes")),
    ):
        for side, name in zip(value.type.tensor_type.shape.dim, names, strict=True):
            if not side.HasField("dim_value"):
                side.dim_param = name
    read = {name for node in graph.node for name in node.input}
    kept = [node for node in graph.node if node.op_type != "Constant" or node.output[0] in read]
    del graph.node[:]
    graph.node.extend(kept)
    del graph.value_info[:]
    onnx.checker.check_model(model)
    onnx.save(model, file)
