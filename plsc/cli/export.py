"""Write a model for Paddle Inference or onnxruntime, and check it there against the model itself.

The folder that is written holds the graph, how pictures enter it (preprocess.json), the class names and
export.json. It stays away where the runtime's logits are not the model's.
"""

import argparse
from pathlib import Path

from plsc.cli.common import (
    above_zero,
    add_config_arguments,
    hint_at_averaged,
    optional_config,
    positive,
    weights_of,
)
from plsc.errors import CheckpointError, ConfigError

DYNAMIC = "dynamic"

EXAMPLES = """\
  plsc export --weights output/digits --output digits_paddle
  plsc export --weights output/mine --ema --format onnx --precision fp16 --output mine_onnx
  plsc export --weights output/mine --format onnx --resolution dynamic --output mine_onnx     any picture size
  plsc export --weights deit.npz -c DeiT_tiny_patch16_224_eval --resolution 288 --output deit_288
  python tools/export.py -c my_run.yaml -o Global.pretrained_model=output/mine -o Export.export_type=onnx
"""


def add_arguments(parser):
    add_config_arguments(parser, required=False)
    parser.add_argument(
        "--weights",
        metavar="PATH",
        help="a run directory, a checkpoint folder, or anybody's weights (docs/checkpoints.md), which need -c to say "
        "how pictures enter; default: Global.pretrained_model",
    )
    parser.add_argument("--ema", action="store_true", help="the averaged weights of a plsc checkpoint")
    parser.add_argument("--format", choices=("paddle", "onnx"), help="default: Export.export_type, else paddle")
    parser.add_argument(
        "--output", metavar="FOLDER", help="default with -c: the folder export in Global.output_dir; else required"
    )
    parser.add_argument(
        "--resolution",
        type=_resolution,
        metavar="PIXELS",
        help="another image size than the model's, the position embedding being resized; or dynamic, for any size. "
        "Default: Export.input_shape, else the model's",
    )
    parser.add_argument(
        "--precision",
        choices=("fp32", "fp16"),
        default="fp32",
        help="how weights are stored; fp16 halves the files, and the graph computes in float32 all the same "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--tolerance",
        type=positive,
        metavar="X",
        help="largest difference of a logit in the check; default: 0.0001",
    )


def _resolution(text: str) -> int | str:
    if text == DYNAMIC:
        return text
    try:
        return above_zero(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of pixels nor {DYNAMIC}") from error


def run(arguments) -> int:
    from plsc import environment

    config = optional_config(arguments)
    if config is None:
        environment.prepare()
        environment.import_paddle()
    weights = weights_of(arguments.weights, config, "export")
    output, format = _destination(arguments, config)
    batch, size = (None, None) if config is None else _shape_of(config)
    size = arguments.resolution or size
    _check(weights, config, size)
    import paddle

    from plsc.export import TOLERANCE, export
    from plsc.loading import load_model

    paddle.set_device("cpu")  # where the check runs, whatever the recipe trains on
    part = "ema" if arguments.ema else "model"
    loaded = load_model(weights, weights=part, img_size=None if size == DYNAMIC else size, config=config)
    source = loaded.path
    found = export(
        loaded,
        output,
        format=format,
        weights="ema" if arguments.ema else "raw",
        precision=arguments.precision,
        dynamic=size == DYNAMIC,
        batch=batch,
        tolerance=TOLERANCE if arguments.tolerance is None else arguments.tolerance,
    )
    _report(source, output, format, arguments.precision, found)
    hint_at_averaged(weights, ema=arguments.ema)
    return 0


def _destination(arguments, config) -> tuple[Path, str]:
    """(folder, format) of the export. Raises ConfigError where neither an option nor the recipe says the folder."""
    if not (arguments.output or config):
        raise ConfigError("give --output FOLDER, where the export goes")
    output = Path(arguments.output or Path(config.Global.output_dir) / "export")
    return output, arguments.format or (config.Export.export_type if config else "paddle")


def _check(weights: str, config, size) -> None:
    """Raise for what can be told before any weights are read."""
    from plsc.predictor import is_export

    if is_export(weights):
        raise CheckpointError(f"{weights}: is an export already; export the checkpoint that it was made of")
    if size == DYNAMIC and config is not None and config.Global.position_embedding != "bicubic":
        raise config.error(
            ("Global", "position_embedding"),
            f"is {config.Global.position_embedding}; a dynamic export resizes it bicubic; give --resolution PIXELS",
        )


def _shape_of(config):
    """Export.input_shape → (rows or None for any, image size: None for the model's own, pixels, or dynamic)."""
    shape, path = config.Export.input_shape, ("Export", "input_shape")
    if shape is None:
        return None, None
    if len(shape) != 4 or any(side == 0 for side in shape):
        raise config.error(path, f"is {shape}; it is [batch, channels, height, width], None being free")
    batch, channels, height, width = (None if side is None or side < 0 else side for side in shape)
    model = config.Model.arguments
    if channels not in (None, model["in_chans"]):
        raise config.error(path, f"has {channels} channels, but Model.in_chans is {model['in_chans']}")
    own = model["img_size"]
    own = (own, own) if isinstance(own, int) else tuple(own)
    if (height, width) == own:
        return batch, None
    if height is None and width is None:
        return batch, DYNAMIC
    if height != width:
        raise config.error(
            path, f"is {shape}; height and width are the model's {list(own)}, another square, or both None"
        )
    return batch, height


def _report(source, output: Path, format: str, precision: str, found):
    from plsc import runtimes

    print(f"{source}, checked in {runtimes.NAMES[format]} on two photos and the same moved sideways:")
    for comparison in found:
        print(f"  {comparison}")
    if precision == "fp16":
        print(
            "  weights are float16, for which CPU runtimes have no kernels: the graph casts, the check ran in float32"
        )
    files = sorted(output.iterdir(), key=lambda file: -file.stat().st_size)
    print(f"written {output}: {', '.join(f'{file.name} ({_size(file)})' for file in files)}")


def _size(file: Path) -> str:
    size = file.stat().st_size
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"
