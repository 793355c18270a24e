"""The command line. Commands import Paddle only when they run."""

import argparse
import contextlib
import gc
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import plsc
from plsc import environment
from plsc.cli.common import unknown
from plsc.errors import PlscError

COMMANDS = {
    "train": "train or fine-tune a model from one YAML file",
    "eval": "measure checkpoints and exports on DataLoader.Eval",
    "predict": "name the classes of pictures",
    "export": "write a model for Paddle Inference or onnxruntime",
    "benchmark": "time checkpoints and exports",
    "convert": "rewrite weights in another format",
    "data": "prepare, check or show a data set",
    "visualize": "draw attention, embeddings, filters, patches and curves",
    "plan": "say what a run costs before it is run",
    "doctor": "look for what is wrong with this machine or cluster",
    "sweep": "run a recipe with many settings and seeds, and rank them",
    "compare": "put runs side by side",
    "report": "write runs as one page of HTML",
    "config": "print a run as it would be done",
    "list": "show what recipes can name",
}

_EXAMPLES = """\
  plsc train -c digits                                   train on bundled digits, on this machine
  python -m paddle.distributed.launch --nproc_per_node 2 tools/train.py -c digits
  plsc train -c my_run.yaml -o Global.epochs=10 -o Model.drop_rate=0.1
  plsc eval --weights output/digits
  plsc list models "ViT_small*"
"""


class Parser(argparse.ArgumentParser):
    """A command. Its arguments are filled in when it is used, so that no command waits for another's imports.

    A group of commands without one of them prints its help and ends with exit code 2. A value that is none of the
    choices is answered with the nearest one.

    Args:
        fill: called once with the parser, to set description and arguments.
    """

    def __init__(self, *, fill: Callable[["Parser"], None] | None = None, examples: str = "", **options: Any):
        options.setdefault("formatter_class", _HelpFormatter)
        if examples:
            options["epilog"] = f"examples:\n{examples}"
        super().__init__(**options)
        self._fill = fill

    def filled(self) -> "Parser":
        """The parser itself, with its arguments."""
        fill, self._fill = self._fill, None
        if fill is not None:
            fill(self)
        return self

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self.filled()
        args = sys.argv[1:] if args is None else args
        if not args and self._subparsers is not None:
            self.print_help()
            self.exit(2)
        return super().parse_known_args(args, namespace)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        arguments, rest = self.parse_known_args(args, namespace)
        if rest:
            hint = "; a key of the recipe is set with -o, such as -o Global.epochs=3" if "override" in arguments else ""
            self.error(f"unrecognized arguments: {' '.join(rest)}{hint}")
        return arguments

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            raise argparse.ArgumentError(action, unknown(value, action.choices))


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of descriptions and examples, and the names of commands beside their summaries."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=28)


def parser() -> Parser:
    """The whole command line."""
    root = Parser(
        prog="plsc", description="Vision Transformers on PaddlePaddle, from one YAML file.", examples=_EXAMPLES
    )
    root.add_argument("--version", action="version", version=f"plsc {plsc.__version__}")
    commands = root.add_subparsers(dest="command", metavar="command", required=True)
    for name, summary in COMMANDS.items():
        commands.add_parser(name, help=summary, fill=lambda command, name=name: _fill(command, name))
    return root


def _fill(command: Parser, name: str) -> None:
    """Description, examples and arguments of one command, from its module."""
    module = importlib.import_module(f"plsc.cli.{name}")
    command.description = (module.__doc__ or "").strip()
    command.epilog = f"examples:\n{module.EXAMPLES}"
    module.add_arguments(command)
    command.set_defaults(run=module.run)


def main(argv: list[str] | None = None, *, command: str | None = None) -> int:
    """Run one command.

    Args:
        argv: the command and its arguments; None: those of the program, which ends after it.
        command: which one, where argv are its arguments alone.

    Returns:
        The exit code: 0 done, 1 done in part or a fault of plsc, 2 for what the user can correct, 130 after Ctrl-C,
        143 after SIGTERM.
    """
    environment.die_with_launcher()
    environment.is_command = argv is None
    given = sys.argv[1:] if argv is None else argv
    with _signals():
        code = _run(given if command is None else [command, *given])
        if code and environment.launched():
            # leave at once: other processes' broken connections must not turn this into an abort
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        if environment.is_command:
            gc.freeze()  # Python's end searches all objects for garbage, with Paddle for a third of a second
            if code > 128:  # it is asked to end once more, and does so as it is
                for number in (signal.SIGINT, signal.SIGTERM):
                    signal.signal(number, signal.SIG_IGN)
    return code


def _run(argv: list[str]) -> int:
    try:
        arguments = parser().parse_args(argv)
        return arguments.run(arguments) or 0
    except PlscError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except environment.Terminated:
        print("terminated", file=sys.stderr)
        return 128 + signal.SIGTERM
    except BrokenPipeError:
        sys.stderr.close()  # the reader, for instance `head`, has what it wanted
        return 0
    except Exception:
        traceback.print_exc()
        return 1


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """Context in which Ctrl-C and SIGTERM end the command with one line."""
    before = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, _on_signal)
    except ValueError:  # not the main thread, which alone receives signals
        pass
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is _on_signal:
                signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _on_signal(number: int, frame: FrameType | None) -> None:
    """End by an exception, or at once while modules are imported: a library may turn an exception into another one."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            os.write(2, b"interrupted\n" if number == signal.SIGINT else b"terminated\n")
            os._exit(128 + number)
        frame = frame.f_back
    raise KeyboardInterrupt if number == signal.SIGINT else environment.Terminated
