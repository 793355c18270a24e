"""Train, fine-tune or continue a run described by one YAML file.

The run directory (Global.output_dir) gets the resolved configuration, metrics.jsonl, train.log,
checkpoints and curves.png. One process; paddle.distributed.launch starts several.
"""

import argparse
import json

from plsc.cli.common import add_config_arguments, add_verify_argument, config_of

EXAMPLES = """\
  plsc train -c digits
  plsc train -c digits -o Global.output_dir=output/second -o Global.epochs=5
  plsc train -c digits -o Global.resume=auto
  python -m paddle.distributed.launch --devices=0,1,2,3,4,5,6,7 tools/train.py \\
      -c configs/VisionTransformer/ViT_base_patch16_224_in1k_1n8c_dp_fp16o2.yaml
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    add_verify_argument(parser)
    parser.add_argument(
        "-p",
        "--profiler_options",
        metavar="OPTIONS",
        help='profile some updates, for instance "batch_range=[10,20];sorted_key=total;exit_on_finished=True"',
    )


def run(arguments: argparse.Namespace) -> int:
    from plsc.training import train

    options = arguments.profiler_options
    profiling = [f"Global.profiler_options={json.dumps(options)}"] if options else []
    return train(config_of(arguments, *profiling), verify=arguments.verify).exit_code
