"""Write docs/api.md from the public docstrings; with --check only compare, exit code 1 where they differ."""

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

CHECKOUT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(CHECKOUT))

from generated_page import main  # noqa: E402

import plsc  # noqa: E402
from plsc.registry import Registry  # noqa: E402

PAGE = CHECKOUT / "docs" / "api.md"
WIDTH = 100  # of a signature

_HEAD = """\
<!-- Written by tools/generate_api_docs.py from the docstrings; change those instead. -->

# The Python interface

Everything below is `plsc.NAME`. Importing plsc imports no Paddle; that happens when a name that needs it is first used.
[python.md](python.md) is the guide to it. What is not listed here may change in any version.
"""

_SECTIONS = {
    "functions": ("Functions", "Each command of the [command line](cli.md) calls one of these."),
    "registers": (
        "Adding components",
        "Decorators that make a class or function available to recipes under its name. All of them take the same "
        "arguments. [CONTRIBUTING.md](../CONTRIBUTING.md) shows them at work.",
    ),
    "protocols": (
        "What components offer",
        "Protocols: a class that has these members is one, whatever it inherits from.",
    ),
    "classes": ("What functions take and return", ""),
    "errors": ("Errors", "Conditions that the user can correct; the text says what is wrong, where, and what to do."),
}
_HEADINGS = {"Args": "Arguments", "Attributes": "Attributes", "Returns": "Returns", "Yields": "Yields"}
_HEADINGS |= {"Raises": "Raises", "Example": "Example", "Examples": "Example"}
_HEADING = re.compile(rf"^({'|'.join(_HEADINGS)}):$", re.MULTILINE)
_ITEM = re.compile(r"^(\*{0,2}[\w.]+(?:, \*{0,2}[\w.]+)*): ", re.MULTILINE)


def page() -> str:
    """The whole text.

    Raises:
        ValueError: a public name has no docstring.
    """
    members: dict[str, dict[str, Any]] = {section: {} for section in _SECTIONS}
    for name in plsc.__all__:
        value = getattr(plsc, name)
        if not name.startswith("__"):
            members[_section_of(value)][name] = value
    parts = [_HEAD, *_contents(members)]
    for section, (title, introduction) in _SECTIONS.items():
        parts += [f"## {title}\n", *([introduction + "\n"] if introduction else [])]
        parts += _registers(members[section]) if section == "registers" else _entries(members[section])
    return "\n".join(parts)


def _section_of(value: Any) -> str:
    if inspect.ismethod(value) and isinstance(value.__self__, Registry):
        return "registers"
    if not inspect.isclass(value):
        return "functions"
    if issubclass(value, Exception):
        return "errors"
    return "protocols" if getattr(value, "_is_protocol", False) else "classes"


def _contents(members: dict[str, dict[str, Any]]) -> Iterator[str]:
    for section, (title, _) in _SECTIONS.items():
        names = members[section]
        if section == "registers":
            links = ", ".join(f"`{name}`" for name in names)
        else:
            links = ", ".join(f"[{name}](#{name.lower()})" for name in names)
        yield f"- [{title}](#{title.lower().replace(' ', '-')}): {links}"
    yield ""


def _entries(named: dict[str, Any]) -> Iterator[str]:
    for name, value in named.items():
        yield f"### {name}\n"
        yield from _class(value) if inspect.isclass(value) else _function(name, value)


def _registers(named: dict[str, Any]) -> Iterator[str]:
    if not named:
        return
    name, first = next(iter(named.items()))
    yield from ("| decorator | makes available |", "|---|---|")
    yield from (f"| `{name}` | {method.__self__.plural.replace('_', ' ')} |" for name, method in named.items())
    yield ""
    yield from _function(name.partition("_")[0] + "_…", first.__func__)


def _function(name: str, function: Callable) -> Iterator[str]:
    yield f"```python\n{_signature(name.rpartition('.')[2], _definition(function, ast.FunctionDef))}\n```\n"
    if function.__doc__ or not name.endswith("__"):  # what __len__ does needs no words
        yield from _documentation(_docstring(name, function))


def _class(kind: type) -> Iterator[str]:
    """A class's fields or constructor, its docstring, and its properties and methods in their order."""
    body = _definition(kind, ast.ClassDef).body
    constructor = next((n for n in body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
    fields = [n for n in body if isinstance(n, ast.AnnAssign) and not ast.unparse(n.target).startswith("_")]
    if constructor:
        yield f"```python\n{_signature(kind.__name__, constructor)}\n```\n"
    elif fields:
        yield "```python\n" + "\n".join(_quoted(ast.unparse(field)) for field in fields) + "\n```\n"
    yield from _documentation(_docstring(kind.__name__, kind))
    for name, member in vars(kind).items():
        function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        shown = not name.startswith("_") or name in ("__call__", "__getitem__", "__len__", "__iter__")
        if not shown or not inspect.isfunction(function):
            continue
        full = f"{kind.__name__}.{name}"
        yield f"#### `{full}`\n"
        yield from (
            _documentation(_docstring(full, member)) if isinstance(member, property) else _function(full, function)
        )


_Node = TypeVar("_Node", bound=ast.stmt)


def _definition(value: Any, kind: type[_Node]) -> _Node:
    """The syntax tree of a class or function."""
    [node] = ast.parse(textwrap.dedent(inspect.getsource(value))).body
    assert isinstance(node, kind), value
    return node


def _quoted(code: str) -> str:
    """With double quotes, as in the sources."""
    return code if '"' in code else code.replace("'", '"')


def _unquoted(annotation: ast.expr) -> ast.expr:
    """An annotation without the quotes that delay its evaluation."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        return ast.parse(annotation.value, mode="eval").body
    return annotation


def _signature(name: str, node: ast.FunctionDef) -> str:
    """As it is written, on one line where it fits."""
    arguments = node.args
    if arguments.args and arguments.args[0].arg in ("self", "cls"):
        del arguments.args[0]
    result = f" -> {ast.unparse(_unquoted(node.returns))}" if node.returns else ""
    parts = list(_one_by_one(arguments))
    line = f"{name}({', '.join(parts)}){result}"
    if len(line) > WIDTH:
        line = f"{name}(\n" + "".join(f"    {part},\n" for part in parts) + f"){result}"
    return _quoted(line)


def _one_by_one(arguments: ast.arguments) -> Iterator[str]:
    """Each parameter with its annotation and default."""
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(positional) - len(arguments.defaults)) + arguments.defaults
    for argument, default in zip(positional, defaults, strict=True):
        yield _parameter(argument, default)
        if arguments.posonlyargs and argument is arguments.posonlyargs[-1]:
            yield "/"
    if arguments.vararg:
        yield f"*{ast.unparse(arguments.vararg)}"
    elif arguments.kwonlyargs:
        yield "*"
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        yield _parameter(argument, default)
    if arguments.kwarg:
        yield f"**{ast.unparse(arguments.kwarg)}"


def _parameter(argument: ast.arg, default: ast.expr | None) -> str:
    if argument.annotation:
        argument.annotation = _unquoted(argument.annotation)
    text = ast.unparse(argument)
    if default is None:
        return text
    return f"{text} = {ast.unparse(default)}" if argument.annotation else f"{text}={ast.unparse(default)}"


def _docstring(name: str, value: Any) -> str:
    text = value.__doc__  # not inspect.getdoc, which would take a base class's
    if not text or text.startswith(f"{name}("):  # dataclasses write such a one themselves
        raise ValueError(f"plsc.{name}: has no docstring")
    return inspect.cleandoc(text)


def _documentation(text: str) -> Iterator[str]:
    """A docstring in Google's form → Markdown."""
    first, *rest = _HEADING.split(text)
    yield _text(first)
    for heading, body in zip(rest[::2], rest[1::2], strict=True):
        # a section ends with its indentation; what follows is text again
        lines = body.strip("\n").splitlines()
        end = next((k for k, line in enumerate(lines) if line and not line.startswith(" ")), len(lines))
        inside, after = textwrap.dedent("\n".join(lines[:end])).strip(), "\n".join(lines[end:]).strip()
        yield f"{_HEADINGS[heading]}:\n"
        if heading.startswith("Example"):
            yield f"```python\n{inside}\n```\n"
        elif heading in ("Returns", "Yields"):
            yield _text(inside)
        else:
            yield _items(inside) + "\n"
        if after:
            yield _text(after)


def _text(text: str) -> str:
    """Paragraphs, with those that show the interpreter's prompt as code."""
    paragraphs = (f"```python\n{p}\n```" if p.startswith(">>>") else p for p in text.strip().split("\n\n"))
    return "\n\n".join(paragraphs) + "\n"


def _items(text: str) -> str:
    """`name: meaning` entries, each with its continuation lines → a list."""
    starts = list(_ITEM.finditer(text))
    if not starts or starts[0].start() > 0:
        return text
    ends = [match.start() for match in starts[1:]] + [len(text)]
    lines = []
    for match, end in zip(starts, ends, strict=True):
        names = ", ".join(f"`{name}`" for name in match[1].split(", "))
        meaning = " ".join(text[match.end() : end].split())
        lines.append(f"- {names}: {meaning}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(__doc__, page, PAGE))
