"""The fenced blocks, headings and links of a Markdown page."""

import re
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(
    r"^(?:<!-- not run: (?P<reason>.+?) -->\n)?(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
_FILE = re.compile(r"^(?:#|//) ([\w./-]+\.\w+)\n")


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        line: of the page, where the text begins.
        reason: why the tests do not run it, from the comment <!-- not run: … --> above it; None where they do.
    """

    page: str
    line: int
    language: str
    text: str
    reason: str | None

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def file(self) -> str | None:
        """The name of the file that the block shows: its first line is a comment that says only that."""
        match = _FILE.match(self.text)
        return match[1] if match else None


def blocks(root: Path, page: str) -> list[Block]:
    """All blocks of a page, in order."""
    text = (root / page).read_text(encoding="utf-8")
    collected = []
    for match in _FENCE.finditer(text):
        line = text.count("\n", 0, match.start("text")) + 1
        lines = match["text"].splitlines(keepends=True)
        inside = "".join(part.removeprefix(match["indent"]) for part in lines)
        collected.append(Block(page, line, match["language"], inside, match["reason"]))
    return collected


def without_blocks(text: str) -> str:
    """The page's prose: fenced blocks and comments are left out."""
    return re.sub(r"<!--.*?-->", "", _FENCE.sub("", text), flags=re.DOTALL)


def links(text: str) -> list[str]:
    """The addresses of links and pictures."""
    return re.findall(r"\]\(([^)\s]+)\)", without_blocks(text))


def anchors(text: str) -> set[str]:
    """The names by which a page's headings are linked to, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", without_blocks(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
