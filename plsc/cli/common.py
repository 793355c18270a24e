"""What commands share: arguments, and loading a configuration before Paddle."""

import argparse
import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from plsc import environment, places
from plsc.errors import CheckpointError, ConfigError
from plsc.runs.tables import text_table

if TYPE_CHECKING:
    from plsc.config import Config


def add_config_arguments(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """-c and -o, as in every command that reads a recipe."""
    parser.add_argument(
        "-c",
        "--config",
        required=required,
        metavar="RECIPE",
        help="a YAML file, or the bare name of a shipped recipe (`plsc list recipes`)",
    )
    parser.add_argument(
        "-o",
        "--override",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override one key, for instance Global.epochs=3 or DataLoader.Train.sampler.batch_size=64; may be given "
        "several times",
    )
    add_import_argument(parser)


def add_import_argument(parser: argparse.ArgumentParser) -> None:
    """--import, as in every command that reads a recipe or weights."""
    parser.add_argument(
        "--import",
        action="append",
        default=[],
        dest="imports",
        metavar="MODULE|FILE",
        help="a module (my_package.my_module) or a .py file that registers your own components, besides the recipe's "
        "Global.imports; may be given several times",
    )


def add_weights_arguments(
    parser: argparse.ArgumentParser,
    *,
    exports: bool = False,
    several: bool = False,
    default: str = "Global.pretrained_model",
) -> None:
    """--weights and --ema, as in every command that reads weights.

    Args:
        exports: whether an export will do, too. several: whether --weights may be repeated.
    """
    text = f"a run directory, a checkpoint{', an export' if exports else ''} or anybody's weights (docs/checkpoints.md)"
    if several:
        text += "; may be given several times"
        parser.add_argument(
            "--weights", action="append", default=[], metavar="PATH", help=f"{text}; default: {default}"
        )
    else:
        parser.add_argument("--weights", metavar="PATH", help=f"{text}; default: {default}")
    parser.add_argument("--ema", action="store_true", help="the averaged weights of a plsc checkpoint")
    add_verify_argument(parser)


def add_verify_argument(parser: argparse.ArgumentParser) -> None:
    """--no-verify, as in every command that reads a checkpoint."""
    parser.add_argument(
        "--no-verify",
        action="store_false",
        dest="verify",
        help="read a plsc checkpoint without comparing its files with their checksums",
    )


def unknown(value: str, choices: Iterable[str]) -> str:
    """The message for a value that is none of the choices."""
    from plsc.registry import nearest

    choices = [str(choice) for choice in choices]
    close = nearest(value, choices)
    hint = f"did you mean {close}? The choices are" if close else "the choices are"
    return f"{value!r} is unknown; {hint} {', '.join(choices)}"


def whole(least: int, most: float = math.inf) -> Callable[[str], int]:
    """A type for argparse: whole numbers from `least` to `most`."""

    def parsed(text: str) -> int:
        if not (text.isascii() and text.isdecimal() and least <= int(text) <= most):
            lowest = "above 0" if least == 1 else f"of at least {least}"
            limits = lowest if most == math.inf else f"from {least} to {most}"
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number {limits}")
        return int(text)

    return parsed


above_zero = whole(1)


def several_above_zero(text: str) -> list[int]:
    """Whole numbers above 0 with commas between them, each once, for argparse."""
    return list(dict.fromkeys(above_zero(part.strip()) for part in text.split(",")))


def positive(text: str) -> float:
    """A finite number above 0, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def checked_output(option: str, path: str | Path, endings: Sequence[str] | None = None) -> Path:
    """The file that an option names, made sure of before any work is done: its folder is made.

    Args:
        endings: those that it may have; None for any.

    Raises:
        ConfigError: it has another ending, is a folder, or cannot be written.
    """
    path = Path(path).expanduser()
    if endings is not None and path.suffix.lower() not in endings:
        raise ConfigError(f"{option} {path}: is written as {', '.join(endings)}; end the name so")
    if path.is_dir():
        raise ConfigError(f"{option} {path}: is a folder; name a file in it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ConfigError(f"{option} {path}: cannot be written: {error.filename} is not a folder") from error
    except OSError as error:
        raise ConfigError(f"{option} {path}: cannot be written: {error.strerror}") from error
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ConfigError(f"{option} {path}: cannot be written: Permission denied")
    return path


def shortened(path: Path) -> Path:
    """A path as it is printed: relative where it lies below the working directory."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def print_table(rows: Sequence[Sequence[str]], *, left: Sequence[bool]) -> None:
    """Rows in columns, aligned to the left where `left` is true, else to the right."""
    print(text_table(rows, left=left), end="")


def config_of(arguments: argparse.Namespace, *more: str, for_training: bool = True) -> "Config":
    """The configuration of -c with -o and --import, and with `more` overrides: see plsc.load_config."""
    from plsc import api

    overrides = [*arguments.override, *more]
    return api.load_config(arguments.config, overrides, arguments.imports, for_training=for_training)


def optional_config(arguments: argparse.Namespace) -> "Config | None":
    """The configuration of -c with -o and --import; None without -c, where --import is done all the same.

    Raises:
        ConfigError: there is -o without -c.
    """
    if arguments.config:
        return config_of(arguments, for_training=False)
    if arguments.override:
        raise ConfigError("-o changes a recipe; give one with -c RECIPE")
    import_parts(arguments)
    return None


def import_parts(arguments: argparse.Namespace) -> None:
    """What --import names."""
    if arguments.imports:
        environment.import_paddle()
        from plsc import components

        components.import_parts(arguments.imports)


def weights_of(given: str | None, config: "Config | None", purpose: str) -> str:
    """What --weights gives, else Global.pretrained_model or Global.checkpoint of the configuration, if there is one.

    Args:
        purpose: for the message, what is to be done with them.

    Raises:
        CheckpointError: there are none.
    """
    weights = given or (config and (config.Global.pretrained_model or config.Global.checkpoint))
    if not weights:
        raise CheckpointError(
            f"no weights to {purpose} are given: name them with --weights PATH, or with -c RECIPE and "
            "-o Global.pretrained_model=PATH"
        )
    return weights


def hint_at_averaged(weights: str, *, ema: bool, file: TextIO | None = None) -> None:
    """Print a note where a run's best result was measured with averaged weights, and --ema does not ask for them.

    Args:
        file: where it is printed; None for standard output.
    """
    run = None if ema else places.run_directory(weights)
    if run is None:
        return
    from plsc.engine.checkpoint import Checkpoints

    record = Checkpoints(run / places.CHECKPOINTS).best_record()
    if record and record["weights"] == "ema":
        print(
            f"note: the best {record['metric']} of this run was measured with averaged weights; --ema takes them",
            file=file,
        )
