"""The language of code, messages and documentation: plain English and the field's words."""

import ast
import re
from pathlib import Path

import pytest

from tests.helpers import CHECKOUT

PAGES = [*CHECKOUT.glob("*.md"), *(CHECKOUT / "docs").glob("*.md"), *(CHECKOUT / "task").rglob("*.md")]
MODULES = [
    path
    for folder in ("plsc", "tools", "examples", "benchmarks", "tests")
    for path in sorted((CHECKOUT / folder).rglob("*.py"))
    if path != Path(__file__)
]

# what is not written, and what is written instead
WORDS = {
    r"behind": "after (in time or order), below (on a page)",
    r"beyond": "above (a limit), outside (a range)",
    r"(nothing|nobody|none of them) (says|said|tells|told|states)": "is missing, is unknown",
    r"(is|are|was|were|be) told": "is reported, is logged",
    r"without a (sound|word)": "silently",
    r"mends?|mended": "correct, repair",
    r"in the midst": "during, inside",
    r"1 \w+(es|[^us]s)(?= (and|of|in|on|per)\b)": "the singular after 1",
}
# variables and functions are called after what they hold or do; a sentence of a test may have "found"
NAMES = re.compile(r"(.*_)?(said|told|beyond|behind)(_.*)?|_?found|found_(?!inf$).*")


@pytest.mark.parametrize("path", [*PAGES, *MODULES], ids=lambda path: str(path.relative_to(CHECKOUT)))
def test_words(path):
    wrong = []
    for line, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        for pattern, instead in WORDS.items():
            match = re.search(rf"\b({pattern})\b", text, re.IGNORECASE)
            if match:
                wrong.append(f"{path.relative_to(CHECKOUT)}:{line}: {match[0]!r}; write: {instead}")
    assert not wrong, "\n".join(wrong)


def bound(tree: ast.AST):
    """(line, name) of everything that a module gives a name, its attributes included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.lineno, node.name


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(CHECKOUT)))
def test_names(path):
    names = bound(ast.parse(path.read_text(encoding="utf-8")))
    wrong = [f"{path.relative_to(CHECKOUT)}:{line}: {name}" for line, name in names if NAMES.fullmatch(name)]
    assert not wrong, "named after what it holds: " + ", ".join(wrong)


def test_the_patterns_match_what_they_are_meant_for():
    assert all(map(NAMES.fullmatch, ("said", "_found", "found_pictures", "is_told", "beyond_it")))
    assert not any(map(NAMES.fullmatch, ("found_inf", "a_file_is_found_beside_it", "aforesaid", "told2me")))
    examples = ["behind it", "beyond", "nothing says it", "is told", "without a word", "mends", "1 processes of"]
    for text in examples:
        assert any(re.search(rf"\b({pattern})\b", text) for pattern in WORDS), text
    assert not any(re.search(rf"\b({pattern})\b", "1 class of 1 bus in 5 classes") for pattern in WORDS)
