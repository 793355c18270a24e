"""Draw attention, position embeddings, filters, training curves and patches, as PNG or SVG.

docs/visualization.md shows what to look for in each picture.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from plsc import environment
from plsc.cli.common import (
    above_zero,
    add_config_arguments,
    add_weights_arguments,
    checked_output,
    config_of,
    hint_at_averaged,
    optional_config,
    weights_of,
)
from plsc.errors import ConfigError

if TYPE_CHECKING:
    from plsc.loading import LoadedModel

EXAMPLES = """\
  plsc visualize attention --weights output/flowers rose.jpg tulip.jpg --output sheet.png
  plsc visualize position --weights deit_tiny.npz --resolution 384 --output position.svg
  plsc visualize filters --weights deit_tiny.npz --output filters.png
  plsc visualize curves output/first output/second --output curves.png
  plsc visualize patches -c DeiT_tiny_patch16_224_eval rose.jpg --output patches.png

`plsc visualize attention --help`, and so on, shows what each can do.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pictures = parser.add_subparsers(dest="picture", metavar="picture", required=True)
    for name, kind in _PICTURES.items():
        command = pictures.add_parser(
            name,
            help=kind.summary,
            description=kind.description,
            epilog="examples:\n" + kind.examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        kind.add_arguments(command)
        command.add_argument(
            "--output", default=f"{name}.png", metavar="FILE", help=f"a .png or .svg file; default: {name}.png"
        )
        command.set_defaults(draw=kind.draw)


def run(arguments: argparse.Namespace) -> int:
    from plsc.visualize import sheet

    path = arguments.draw(arguments, checked_output("--output", arguments.output, sheet.ENDINGS))
    print(f"written to {path}")
    return 0


# -- attention ----------------------------------------------------------------------------


def _attention_arguments(parser: argparse.ArgumentParser) -> None:
    add_weights_arguments(parser)
    _add_resolution(parser, "another image size; the position embedding is resized, resize and crop follow")
    _add_pictures(parser, count="+", what="picture files")
    parser.add_argument(
        "--by",
        choices=("rollout", "layer", "head"),
        default="rollout",
        help="one map through all layers, one up to each layer, or one for each head of a layer; default: rollout",
    )
    parser.add_argument(
        "--layer", type=above_zero, metavar="N", help="the layer of --by head, 1 is the first; default: the last"
    )
    parser.add_argument(
        "--raw",
        action="store_true",
        help="with --by layer or head: their own attention weights, without what the layers before have mixed",
    )
    parser.add_argument(
        "--class-names", metavar="FILE", help="a name a line, for the titles; default: those of the weights"
    )


def _attention(arguments: argparse.Namespace, output: Path) -> Path | None:
    model = _model(arguments, img_size=arguments.resolution)
    from plsc.visualize import draw_attention

    return draw_attention(
        model,
        arguments.images,
        output,
        by=arguments.by,
        layer=arguments.layer,
        raw=arguments.raw,
        class_names=arguments.class_names,
    )


# -- position and filters -----------------------------------------------------------------


def _position_arguments(parser: argparse.ArgumentParser) -> None:
    add_weights_arguments(parser)
    _add_resolution(parser, "the image size that the position embedding is resized to; default: 1.5 times its own")
    _add_pictures(parser, count="*", what="picture files to measure the attention distance on; the more, the smoother")


def _position(arguments: argparse.Namespace, output: Path) -> Path | None:
    model = _model(arguments)
    from plsc.visualize import draw_position

    drawn = draw_position(model, output, img_size=arguments.resolution, pictures=arguments.images)
    if not arguments.images:
        print("name picture files, too, to see how far across them each head looks")
    return drawn


def _filters_arguments(parser: argparse.ArgumentParser) -> None:
    add_weights_arguments(parser)
    add_config_arguments(parser, required=False)
    parser.add_argument(
        "--components", type=above_zero, default=28, metavar="N", help="how many principal components; default: 28"
    )


def _filters(arguments: argparse.Namespace, output: Path) -> Path | None:
    model = _model(arguments)
    from plsc.visualize import draw_filters

    return draw_filters(model, output, count=arguments.components)


# -- patches ------------------------------------------------------------------------------


def _patches_arguments(parser: argparse.ArgumentParser) -> None:
    add_weights_arguments(parser, default="none, only the model of -c RECIPE")
    _add_resolution(parser, "another image size; resize and crop follow")
    _add_pictures(parser, count="+", what="picture files")


def _patches(arguments: argparse.Namespace, output: Path) -> Path | None:
    from plsc.engine.evaluation_plan import at_resolution

    if arguments.ema and not arguments.weights:
        raise ConfigError("--ema goes with --weights")
    config = None if arguments.weights else optional_config(arguments)
    if config is not None and arguments.resolution:
        config = at_resolution(config, arguments.resolution)
    if config is None and not arguments.weights:
        raise ConfigError("give --weights PATH or -c RECIPE: by them the model cuts pictures")
    model = config or _model(arguments, img_size=arguments.resolution)
    from plsc.visualize import draw_patches

    return draw_patches(model, arguments.images, output)


# -- curves -------------------------------------------------------------------------------


def _curves_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="*", metavar="RUN", help="run directories, or folders of them such as a search's")
    add_config_arguments(parser, required=False)
    parser.add_argument(
        "--steps",
        type=above_zero,
        metavar="N",
        help="with -c: updates of the whole run; default: counted from the training data, which must then be there",
    )
    parser.add_argument(
        "--processes", type=above_zero, metavar="N", help="with -c: processes that the run is to have; default: 1"
    )


def _curves(arguments: argparse.Namespace, output: Path) -> Path | None:
    if bool(arguments.runs) == bool(arguments.config):
        raise ConfigError("give either run directories, whose curves are drawn, or -c RECIPE, whose schedule is drawn")
    if arguments.runs:
        for name in ("override", "steps", "processes"):
            if getattr(arguments, name):
                raise ConfigError(f"--{name} goes with -c RECIPE; the curves of runs are drawn as they were logged")
        from plsc.runs.records import check_runs, run_folders
        from plsc.visualize.curves import draw_curves

        folders = run_folders(arguments.runs)
        check_runs(folders)
        return draw_curves(folders, output)
    if arguments.steps and arguments.processes:
        raise ConfigError("--processes helps to count the updates, which --steps gives already; keep one")
    config = config_of(arguments)
    from plsc.visualize import draw_schedule

    return draw_schedule(config, output, steps=arguments.steps, processes=arguments.processes or 1)


# -- what they share ----------------------------------------------------------------------


def _add_resolution(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--resolution", type=above_zero, metavar="PIXELS", help=what)


def _add_pictures(parser: argparse.ArgumentParser, *, count: str, what: str) -> None:
    """Picture files, and the recipe that states how they enter a model whose weights do not."""
    parser.add_argument("images", nargs=count, metavar="IMAGE", help=what)
    add_config_arguments(parser, required=False)


def _model(arguments: argparse.Namespace, img_size: int | None = None) -> "LoadedModel":
    """The model of --weights or -c on its device: a LoadedModel."""
    config = optional_config(arguments)
    weights = weights_of(arguments.weights, config, "draw")
    device = config.Global.device if config else "auto"
    environment.import_paddle()
    from plsc.devices import select_device
    from plsc.loading import load_model

    select_device(device)
    part = "ema" if arguments.ema else "model"
    model = load_model(weights, weights=part, img_size=img_size, config=config, verify=arguments.verify)
    hint_at_averaged(weights, ema=arguments.ema)
    return model


class _Picture(NamedTuple):
    summary: str
    description: str
    examples: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    draw: Callable[[argparse.Namespace, Path], Path | None]


_PICTURES = {
    "attention": _Picture(
        "which parts of pictures the model attends to",
        "Attention rollout (Abnar and Zuidema, 2020) over pictures, as in the ViT paper: through all layers, up to\n"
        "each layer, or up to each head of a layer. Several pictures make one sheet.\n\n"
        "Model and preprocessing are those of the weights or, where these do not state them, those of -c RECIPE, by\n"
        "its Model and DataLoader.Eval.",
        "  plsc visualize attention --weights output/flowers rose.jpg tulip.jpg --output sheet.png\n"
        "  plsc visualize attention --weights output/flowers --by layer rose.jpg\n"
        "  plsc visualize attention --weights output/flowers --by head --layer 6 --raw rose.jpg --output heads.svg\n"
        "  plsc visualize attention --weights deit_tiny.npz -c DeiT_tiny_patch16_224_eval --resolution 448 rose.jpg\n",
        _attention_arguments,
        _attention,
    ),
    "position": _Picture(
        "position embedding, before and after resizing; attention distance",
        "How each patch's row of the position embedding resembles the others, before and after resizing and beside\n"
        "sine and cosine; the patch embedding's filters; and, over the pictures given, how far each head looks.",
        "  plsc visualize position --weights output/flowers\n"
        "  plsc visualize position --weights output/flowers --resolution 384 rose.jpg tulip.jpg --output position.svg\n"
        "  plsc visualize position --weights deit_tiny.npz -c DeiT_tiny_patch16_224_eval rose.jpg\n",
        _position_arguments,
        _position,
    ),
    "filters": _Picture(
        "principal components of the patch embedding's filters",
        "The first principal components of the patch embedding's filters, and how much of them they explain. In\n"
        "hybrids these are the filters of the ResNet's first convolution.",
        "  plsc visualize filters --weights output/flowers\n"
        "  plsc visualize filters --weights deit_tiny.npz --components 56 --output filters.svg\n",
        _filters_arguments,
        _filters,
    ),
    "curves": _Picture(
        "loss, accuracy, lr and throughput of runs; or a recipe's lr schedule",
        "Loss, accuracy, learning rate and throughput of one or many runs; or, with -c, the learning rate of a recipe\n"
        "before it is run.",
        "  plsc visualize curves output/digits\n"
        "  plsc visualize curves output/first output/second --output compared.svg\n"
        "  plsc visualize curves -c digits -o LRScheduler.warmup_epochs=10 --output schedule.png\n"
        "  plsc visualize curves -c ViT_base_patch16_224_in1k_1n8c_dp_fp16o2 --steps 93900\n",
        _curves_arguments,
        _curves,
    ),
    "patches": _Picture(
        "pictures as the model cuts them",
        "The part of each picture that the model sees, the grid of patches on it, and the patches one by one.",
        "  plsc visualize patches --weights output/flowers rose.jpg\n"
        "  plsc visualize patches -c DeiT_tiny_patch16_224_eval -o Model.patch_size=32 rose.jpg --output patches.svg\n",
        _patches_arguments,
        _patches,
    ),
}
