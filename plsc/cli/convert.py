"""Rewrite weights in another format: plsc's own, timm, Hugging Face, Google's npz, or .pdparams; push them to the hub.

The source may be any format that Global.pretrained_model takes. Values are not changed: converting
there and back gives the same bits.
"""

import argparse

from plsc.cli.common import above_zero, add_config_arguments, add_verify_argument, optional_config
from plsc.errors import ConfigError

EXAMPLES = """\
  plsc convert output/mine --to huggingface --output mine_hf
  plsc convert output/mine --ema --to timm --output mine.safetensors
  plsc convert ViT-B_16.npz --to safetensors --output vit_b16.safetensors
  plsc convert best_model.pdparams -c my_run.yaml --to safetensors --output mine.safetensors
  plsc convert vit_base_patch16_224.pth --to google --output vit.npz --backbone
  plsc convert output/mine --to timm --push me/flowers --license apache-2.0
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from plsc.weights import formats

    parser.add_argument("source", help="a weights file, checkpoint, run directory or Hugging Face folder")
    parser.add_argument(
        "--to", required=True, type=_format, metavar="FORMAT", help=f"the format to write: {', '.join(formats())}"
    )
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--output", metavar="PATH", help="a file; for huggingface a folder, for timm either")
    target.add_argument(
        "--push",
        metavar="OWNER/NAME",
        help="a repository of Hugging Face's hub that gets the files and a README.md; the token is that of HF_TOKEN or "
        "`hf auth login`",
    )
    parser.add_argument("--license", metavar="ID", help="of the weights, for the README.md, such as apache-2.0")
    parser.add_argument("--private", action="store_true", help="create a repository that only its owner sees")
    parser.add_argument("--backbone", action="store_true", help="leave out head and pre-logits")
    parser.add_argument("--ema", action="store_true", help="the averaged weights of a plsc checkpoint")
    parser.add_argument("--num-heads", type=above_zero, metavar="N", help="attention heads, where they are not stated")
    add_verify_argument(parser)
    add_config_arguments(parser, required=False)


def _format(text: str) -> str:
    from plsc.convert import check_format

    try:
        check_format(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def run(arguments: argparse.Namespace) -> int:
    from plsc.convert import convert_weights

    if arguments.push is None and (arguments.license is not None or arguments.private):
        raise ConfigError("--license and --private are of a repository: they go with --push")
    config = optional_config(arguments)
    made = convert_weights(
        arguments.source,
        arguments.to,
        arguments.output,
        push=arguments.push,
        license=arguments.license,
        private=arguments.private,
        ema=arguments.ema,
        backbone=arguments.backbone,
        num_heads=arguments.num_heads,
        config=config,
        verify=arguments.verify,
    )
    print(made.text(), end="")
    return 0
