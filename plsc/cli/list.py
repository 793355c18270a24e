"""Show what recipes can name, with arguments, defaults and a line of explanation each."""

import inspect
import textwrap
import typing

EXAMPLES = """\
  plsc list models
  plsc list optimizers
  plsc list recipes
"""

_KINDS = (
    "models",
    "datasets",
    "transforms",
    "batch_transforms",
    "samplers",
    "optimizers",
    "schedulers",
    "losses",
    "metrics",
    "recipes",
)


def add_arguments(parser):
    parser.add_argument("kind", choices=_KINDS, help="what to list")


def run(arguments) -> int:
    if arguments.kind == "recipes":
        _recipes()
    else:
        _components(arguments.kind)
    return 0


def _recipes():
    from plsc.config.recipes import describe, shipped_recipes

    for name, path in shipped_recipes().items():
        print(f"{name}\n    {describe(path)}")


def _components(kind: str):
    from plsc import environment, registry

    environment.prepare()
    environment.import_paddle()
    from plsc.components import register_all

    register_all()
    entries = getattr(registry, kind.upper())
    for name in entries:
        entry = entries.get(name)
        aliases = entries.aliases_of(name)
        print(name + (f"  (also {', '.join(aliases)})" if aliases else ""))
        print(f"    {entry.summary}")
        shown = [_shown(p) for p in entry.parameters().values()]
        if kind == "datasets":
            shown.append("slice=None")  # every data set can be cut
        shown = ", ".join(shown) or "no arguments"
        print(textwrap.fill(shown, width=110, initial_indent="    ", subsequent_indent="      "))


def _shown(parameter: inspect.Parameter) -> str:
    """`name=default`, with the choices where there are some."""
    default, choices = parameter.default, ()
    if typing.get_origin(parameter.annotation) is typing.Literal:
        choices = typing.get_args(parameter.annotation)
    if isinstance(default, tuple):
        default = list(default)
    if isinstance(default, str) and not default.strip():
        default = repr(default)
    shown = f"{parameter.name} (required)" if default is parameter.empty else f"{parameter.name}={default}"
    return shown + (f" ({'|'.join(map(str, choices))})" if choices else "")
