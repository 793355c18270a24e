"""What may be exported, and the folder that an export becomes."""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import paddle
from paddle import nn

import plsc
from plsc import build, loading, places, predictor, runtimes
from plsc.config import Config
from plsc.devices import on_device
from plsc.errors import CheckpointError, ConfigError
from plsc.export.check import BATCHES, TOLERANCE, Comparison, cases, channels, check_preprocess, compare, takes_any_size
from plsc.export.graph import import_paddle2onnx, write_graph
from plsc.files import replacing_folder, write_json
from plsc.loading import LoadedModel
from plsc.model_card import ModelCard
from plsc.models.base import Deployable
from plsc.models.deploy import store_half
from plsc.models.spec import is_of_one_size
from plsc.places import EXPORT_DESCRIPTION
from plsc.registry import missing_members

_ONNX_LIMIT = 2**31 - 2**20  # bytes of weights: protobuf takes 2 GB, and the graph needs some
# all that an export may consist of; Paddle 2 writes inference.pdmodel and inference.pdiparams.info
_FILES = {*places.PADDLE_MODELS, "inference.pdiparams", "inference.pdiparams.info", places.ONNX_MODEL}
_FILES |= {"preprocess.json", "classes.json", EXPORT_DESCRIPTION}


@dataclass(frozen=True)
class Export:
    """An export that was written.

    Attributes:
        folder: where it is. source: the file of weights that it was made of.
        format: paddle or onnx. precision: fp32 or fp16.
        checks: the comparisons with the model, all within their tolerance.
        img_size: the only (height, width) that it takes; None where it takes any.
        can_be_dynamic: whether the model can be exported for any size, too.
    """

    folder: Path
    source: Path
    format: str
    precision: str
    checks: list[Comparison]
    img_size: tuple[int, int] | None = None
    can_be_dynamic: bool = True

    def text(self) -> str:
        """What was checked, which pictures the export takes, and its files, as `plsc export` prints it."""
        name = runtimes.NAMES[self.format]
        lines = [f"{self.source}, checked in {name} on two photos and the same moved sideways:"]
        lines += [f"  {comparison}" for comparison in self.checks]
        if self.img_size is not None:
            other = " (any with --resolution dynamic)"
            if not self.can_be_dynamic:
                other = ", as its positions are rotary or relative"
                other += "; for another size export again with --resolution PIXELS"
            lines.append(f"  takes pictures of {self.img_size[0]}x{self.img_size[1]} pixels alone{other}")
        if self.precision == "fp16":
            half = "weights are float16, for which CPU runtimes have no kernels"
            lines.append(f"  {half}: the graph casts, the check ran in float32")
        files = sorted(self.folder.iterdir(), key=lambda file: -file.stat().st_size)
        lines.append(f"written {self.folder}: {', '.join(f'{file.name} ({_size(file)})' for file in files)}")
        return "".join(f"{line}\n" for line in lines)


def _size(file: Path) -> str:
    size = file.stat().st_size
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


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
    verify: bool = True,
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
        verify: compare a plsc checkpoint's files with their checksums.

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
    if output is None:
        if config is None:
            raise ConfigError("the folder to export to is missing: give output (--output FOLDER)")
        output = Path(config.Global.output_dir) / "export"
    folder, batch = Path(output), None
    format = format or (config.Export.export_type if config else "paddle")
    if config is not None:
        batch, size = _input_shape(config)
        if img_size is None and not dynamic:
            img_size, dynamic = (None, True) if size == "dynamic" else (size, False)
    # what is wrong before any weights are read
    if predictor.is_export(given):
        raise CheckpointError(f"{given}: is an export already; export the checkpoint that it was made of")
    _checked_output(folder)
    if format == "onnx":
        import_paddle2onnx()
    if dynamic and config is not None and config.Global.position_embedding != "bicubic":
        raise config.error(
            ("Global", "position_embedding"),
            f"is {config.Global.position_embedding}; a dynamic export resizes it bicubic; give --resolution PIXELS",
        )
    with on_device("cpu"):  # where the check runs
        part = "ema" if ema else "model"
        loaded = loading.load_model(given, weights=part, img_size=img_size, config=config, verify=verify)
        own_size, can_be_dynamic = loaded.card.img_size, not is_of_one_size(loaded.card.spec)
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
    return Export(folder, loaded.path, format, precision, checks, None if dynamic else own_size, can_be_dynamic)


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
    loaded: LoadedModel,
    output: str | Path,
    *,
    format: str,
    weights: str = "raw",
    precision: str = "fp32",
    dynamic: bool = False,
    batch: int | None = None,
    tolerance: float = TOLERANCE,
) -> list[Comparison]:
    """Write a loaded model, run it in its own runtime on real pictures, and put it in place if the logits agree.

    Paddle must be set to the CPU, where the check runs. Arguments and errors that are missing here are
    export_model's.

    Args:
        loaded: the model, which is used up: it is rewritten into the form that is exported.
        weights: which the model holds, raw or ema; for export.json.
        precision: fp32, or fp16: matrices and kernels are stored as float16. The graph makes float32 of them before
            it computes, since runtimes on CPU have no float16 kernels.
        dynamic: take pictures of any size; the position embedding is resized in the graph. So is every model that
            has no img_size, and whose preprocessing has neither a crop nor a resize to height and width.
        batch: a fixed number of rows; None for any.

    Returns:
        What the check found.
    """
    output, network = _checked_output(output), loaded.network
    assert isinstance(network, nn.Layer)
    _check_model(loaded, network, format, precision)
    dynamic = dynamic or loaded.card.img_size is None
    if dynamic:
        _check_dynamic(loaded)
    expected = cases(loaded, BATCHES if batch is None else (batch,), dynamic=dynamic)
    description = {**_description(loaded, format, precision, dynamic, batch), "weights": weights}
    if isinstance(network, Deployable):
        network.simplify(dynamic=dynamic, for_onnx=format == "onnx")
    if precision == "fp16":
        try:
            store_half(network)
        except ValueError as error:
            raise CheckpointError(
                f"{loaded.path}: {error} holds values outside float16; choose --precision fp32"
            ) from error
    try:
        with replacing_folder(output) as writing:
            write_graph(network, writing, description)
            for name, content in {"export": description, **loaded.card.documents()}.items():
                write_json(writing / f"{name}.json", content)
            exported = predictor.load_predictor(writing, device="cpu")
            checks = compare(network, exported, expected, precision, tolerance)
            description["check"] = [dataclasses.asdict(comparison) for comparison in checks]
            write_json(writing / EXPORT_DESCRIPTION, description)
            _checked_output(output)  # something else may have come into its place meanwhile
    except OSError as error:
        raise CheckpointError(f"{output}: could not be written: {error.strerror or error}") from error
    return checks


def _checked_output(path: str | Path) -> Path:
    """The absolute path. Raises CheckpointError where it is not absent, empty, or an earlier export alone."""
    output = Path(os.path.abspath(Path(path).expanduser()))
    if not output.is_dir():
        if output.exists():
            raise CheckpointError(f"{output}: is a file; an export is a folder")
        return output
    present = sorted(path.name for path in output.iterdir())
    others = [name for name in present if name not in _FILES]
    if present and EXPORT_DESCRIPTION not in present:
        raise CheckpointError(f"{output}: holds something other than an export; choose another --output")
    if others:
        some = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
        raise CheckpointError(
            f"{output}: holds, beside an export, {some}, which would be lost with it; move that away, or choose "
            "another --output"
        )
    return output


def _check_model(loaded: LoadedModel, network: nn.Layer, format: str, precision: str) -> None:
    """Raise for what is known before anything is computed."""
    loaded.check_head()
    check_preprocess(loaded)
    if format != "onnx":
        return
    import_paddle2onnx()
    width = {"fp32": 4, "fp16": 2}[precision]
    size = sum(width * p.size for p in network.parameters())
    if size > _ONNX_LIMIT:
        raise CheckpointError(
            f"{loaded.path}: its weights take {size / 1e9:.1f} GB, an ONNX file holds 2 GB; choose --precision fp16, "
            "which halves them, or --format paddle"
        )


def _check_dynamic(loaded: LoadedModel) -> None:
    """Raise CheckpointError for a model that cannot be exported for images of any size."""
    network, card = loaded.network, loaded.card
    if takes_any_size(loaded) or card.img_size is None:
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
    if is_of_one_size(card.spec):
        raise CheckpointError(
            f"{loaded.path}: an export for any image size resizes a position embedding; this model has rotary "
            "embeddings or biases by relative position, which are of one size: give --resolution PIXELS"
        )
    if card.position != "bicubic":
        raise CheckpointError(
            f"{loaded.path}: its position embedding is resized {card.position}; a dynamic export resizes it "
            "bicubic; give --resolution PIXELS, or say Global.position_embedding: bicubic in the recipe of -c"
        )


def _description(loaded: LoadedModel, format: str, precision: str, dynamic: bool, batch: int | None) -> dict:
    """The content of export.json, but for the check."""
    network, own_size = loaded.network, loaded.card.img_size
    height, width = (None, None) if dynamic or own_size is None else own_size
    unit = network.size_unit if isinstance(network, Deployable) else 1
    card = dataclasses.replace(loaded.card, origin=str(loaded.path)).without_documents()
    return {
        "format": format,
        "precision": precision,
        "computes_in": "fp32",
        "input": "image: float32 [batch, channels, height, width], (pixel * scale - mean) / std of preprocess.json",
        "output": "logits: float32 [batch, classes]",
        "input_shape": [batch, channels(loaded), height, width],
        "img_size": own_size and list(own_size),
        "size_unit": unit if dynamic else None,
        **card.to_dict(),
        "versions": {"plsc": plsc.__version__, "paddle": paddle.__version__},
    }
