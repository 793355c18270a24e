"""The command line. Commands import Paddle only when they run."""

import argparse
import importlib
import sys

import plsc
from plsc.errors import PlscError

_COMMANDS = {
    "train": "train or fine-tune a model from one YAML file",
    "eval": "measure a checkpoint on DataLoader.Eval",
    "predict": "name the classes of pictures",
    "export": "write a model for Paddle Inference or onnxruntime",
    "benchmark": "time checkpoints and exports",
    "convert": "rewrite weights in another format",
    "data": "prepare, check or show a data set",
    "visualize": "draw attention, embeddings, filters, patches and curves",
    "config": "print a run as it would be done",
    "list": "show what recipes can name",
}

_EXAMPLES = """\
examples:
  plsc train -c digits                                   train on bundled digits, on this machine
  python -m paddle.distributed.launch --nproc_per_node 2 tools/train.py -c digits
  plsc train -c my_run.yaml -o Global.epochs=10 -o Model.drop_rate=0.1
  plsc eval --weights output/digits
  plsc list models
"""


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    root = argparse.ArgumentParser(
        prog="plsc",
        description="Vision Transformers on PaddlePaddle, from one YAML file.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    root.add_argument("--version", action="version", version=f"plsc {plsc.__version__}")
    commands = root.add_subparsers(dest="command", metavar="command", required=True)
    for name, summary in _COMMANDS.items():
        module = importlib.import_module(f"plsc.cli.{name}")
        command = commands.add_parser(
            name,
            help=summary,
            description=module.__doc__.split("\n\n", 1)[0],
            epilog="examples:\n" + module.EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return root


def main(argv=None) -> int:
    """Run one command; returns the exit code: 0, 2 for what the user can mend, 130 for Ctrl-C, 143 for SIGTERM."""
    arguments = parser().parse_args(argv)
    try:
        return arguments.run(arguments) or 0
    except PlscError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # the reader, for instance `head`, has what it wanted
        return 0
