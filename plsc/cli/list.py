"""Show what recipes can name: a line each, or with -v all arguments with their defaults.

Of recipes it shows data, hardware and the figure to expect, with -v their whole comment. Of models it shows the
parameters, and the operations (GFLOPs) of one image's forward pass, a multiply-add being two.
"""

import argparse
import textwrap
from collections.abc import Iterable
from typing import TYPE_CHECKING

from plsc.cli.common import add_import_argument, import_parts, print_table, unknown
from plsc.errors import ConfigError

if TYPE_CHECKING:
    from plsc.registry import Registry

EXAMPLES = """\
  plsc list                                  what can be listed
  plsc list models "ViT_small*"
  plsc list model ViT_base_patch16_224       all its arguments
  plsc list transforms -v
  plsc list recipes "*coyo*"
"""

KINDS = {
    "models": "networks, for Model.name",
    "datasets": "for DataLoader.Train.dataset.name and DataLoader.Eval.dataset.name",
    "transforms": "of single pictures, for dataset.transform_ops",
    "batch_transforms": "Mixup and its like, for DataLoader.Train.dataset.batch_transform_ops",
    "samplers": "for DataLoader.*.sampler.name",
    "optimizers": "for Optimizer.name",
    "schedulers": "of the learning rate, for LRScheduler.name",
    "tasks": "what one update learns from, for Task.name",
    "losses": "for Loss.Train and Loss.Eval",
    "metrics": "for Metric.Train and Metric.Eval",
    "recipes": "shipped YAML files, for -c",
}
_WIDTH = 110


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "kind",
        nargs="?",
        type=_kind,
        metavar="KIND",
        help=f"{', '.join(KINDS)}; or one of them, such as model, with all its arguments",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help='a name, or a pattern such as "ViT_small*"')
    add_import_argument(parser)
    parser.add_argument("-v", "--verbose", action="store_true", help="with all arguments and their defaults")


def _kind(text: str) -> str:
    if text not in KINDS and text not in map(_singular, KINDS):
        raise argparse.ArgumentTypeError(unknown(text, KINDS))
    return text


def _singular(kind: str) -> str:
    return "loss" if kind == "losses" else kind.removesuffix("s")


def run(arguments: argparse.Namespace) -> int:
    if arguments.kind is None:
        print_table([(f"plsc list {kind}", meaning) for kind, meaning in KINDS.items()], left=[True, True])
        return 0
    kind = next(kind for kind in KINDS if arguments.kind in (kind, _singular(kind)))
    verbose = arguments.verbose or kind != arguments.kind
    if kind == "recipes":
        _print_recipes(arguments.name, verbose)
    elif kind == "models" and not verbose:
        _print_models(arguments)
    else:
        _print_components(kind, arguments, verbose)
    return 0


def _print_recipes(pattern: str | None, verbose: bool) -> None:
    from plsc.config.recipes import header, shipped_recipes

    recipes = shipped_recipes()
    chosen = _matching(pattern, recipes, "recipe")
    if not verbose:
        columns = ("Data", "Hardware", "Figure")
        heads = [(name, header(recipes[name])) for name in chosen]
        rows = [(name, *(head[column].split(";")[0] for column in columns)) for name, head in heads]
        print_table([("recipe", *map(str.lower, columns)), *rows], left=[True] * (1 + len(columns)))
        return
    for name in chosen:
        print(f"{name}\n  {recipes[name]}")
        for line in recipes[name].read_text(encoding="utf-8").splitlines():
            if not line.startswith("#"):
                break
            print(f"  {line.lstrip('#')}".rstrip())


def _print_models(arguments: argparse.Namespace) -> None:
    """A line a model, with its size and its cost; those of others are known only once they are built."""
    from plsc.components import register_models
    from plsc.registry import MODELS

    register_models()
    import_parts(arguments)
    from plsc.models import flops, parameter_count, spec_of
    from plsc.models.zoo import PRESETS

    rows = [("model", "parameters", "GFLOPs", "image", "")]
    for name in _chosen(MODELS, arguments.name):
        figures = ("", "", "")
        if name in PRESETS:
            spec = spec_of(name)
            figures = (f"{parameter_count(spec) / 1e6:,.1f} M", f"{flops(spec) / 1e9:,.1f}", str(spec.img_size))
        rows.append((name, *figures, MODELS.get(name).summary))
    print_table(rows, left=[True, False, False, False, True])


def _print_components(kind: str, arguments: argparse.Namespace, verbose: bool) -> None:
    from plsc import environment, registry

    environment.import_paddle()
    from plsc.components import register_all
    from plsc.config import schema
    from plsc.signatures import argument_text

    register_all()
    import_parts(arguments)
    entries: Registry = getattr(registry, kind.upper())
    chosen = _chosen(entries, arguments.name)
    if not verbose:
        print_table([(name, entries.get(name).summary) for name in chosen], left=[True, True])
        return
    for name in chosen:
        entry, aliases = entries.get(name), _aliases(entries, name)
        print(name + (f"  (also {', '.join(aliases)})" if aliases else ""))
        print(f"    {entry.summary}")
        shown = [argument_text(p) for p in entry.parameters().values()]
        if kind == "datasets":
            shown += [f"{key}={default}" for key, (_, default) in schema.DATASET_KEYS.items()]
        text = ", ".join(shown) or "no arguments"
        print(textwrap.fill(text, width=_WIDTH, initial_indent="    ", subsequent_indent="      "))


def _chosen(entries: "Registry", pattern: str | None) -> list[str]:
    """The names that a pattern fits, also by an alias, sorted."""
    names = {alias: name for name in entries for alias in (name, *_aliases(entries, name))}
    return sorted({names[name] for name in _matching(pattern, names, entries.kind)})


def _aliases(entries: "Registry", name: str) -> list[str]:
    """Other names, PLSC's among them."""
    from plsc.config import plsc_dialect

    return [*entries.aliases_of(name), *plsc_dialect.aliases_of(entries.kind, name)]


def _matching(pattern: str | None, names: Iterable[str], kind: str) -> list[str]:
    """The names that a pattern fits. Raises ConfigError with the nearest name where there is none."""
    from plsc.registry import matching, nearest

    if pattern is None:
        return list(names)
    chosen = matching(pattern, names)
    if not chosen:
        close = nearest(pattern, names)
        raise ConfigError(f"no {kind} is called {pattern!r}" + (f"; did you mean {close}?" if close else ""))
    return chosen
