"""Write a model for Paddle Inference or onnxruntime, and check it there against the model itself.

The folder that is written holds the graph, how pictures enter it (preprocess.json), the class names and
export.json. Where the runtime's logits are not the model's, nothing is written.
"""

import argparse

from plsc import environment
from plsc.cli.common import (
    above_zero,
    add_config_arguments,
    add_weights_arguments,
    hint_at_averaged,
    optional_config,
    positive,
    weights_of,
)

DYNAMIC = "dynamic"

EXAMPLES = """\
  plsc export --weights output/digits --output digits_paddle
  plsc export --weights output/mine --ema --format onnx --precision fp16 --output mine_onnx
  plsc export --weights output/mine --format onnx --resolution dynamic --output mine_onnx     any picture size
  plsc export --weights deit.npz -c DeiT_tiny_patch16_224_eval --resolution 288 --output deit_288
  python tools/export.py -c my_run.yaml -o Global.pretrained_model=output/mine -o Export.export_type=onnx
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser, required=False)
    add_weights_arguments(parser)
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


def run(arguments: argparse.Namespace) -> int:
    config = optional_config(arguments)
    environment.import_paddle()
    from plsc.export import TOLERANCE, export_model

    dynamic = arguments.resolution == DYNAMIC
    weights = weights_of(arguments.weights, config, "export")
    made = export_model(
        weights,
        arguments.output,
        format=arguments.format,
        config=config,
        ema=arguments.ema,
        img_size=None if dynamic else arguments.resolution,
        dynamic=dynamic,
        precision=arguments.precision,
        tolerance=arguments.tolerance or TOLERANCE,
        verify=arguments.verify,
    )
    print(made.text(), end="")
    hint_at_averaged(weights, ema=arguments.ema)
    return 0
