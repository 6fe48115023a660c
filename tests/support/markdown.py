"""Fenced code blocks of Markdown pages, with what an invisible comment right above a block says of it."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
_DOCS = [*REPOSITORY.glob("docs/*.md"), *REPOSITORY.glob("docs/trainers/*.md")]
PAGES = [*sorted(path.relative_to(REPOSITORY).as_posix() for path in _DOCS), "README.md"]

_BLOCK = re.compile(
    r"(?:^(?P<margin>[ ]*)<!-- (?P<note>.+?) -->\n\s*)?"
    r"^(?P<indent>[ ]*)```(?P<language>\w+)\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """One block of code.

    Attributes:
        line: Of the fence, from 1.
        note: What the comment above says, or empty: `not run: <reason>` or `part of: <what>`.
    """

    page: str
    line: int
    language: str
    text: str
    note: str

    @property
    def name(self) -> str:
        return f"{self.page}:{self.line}"

    def noted(self, word: str) -> str:
        """What follows `<word>: ` in the note, or empty."""
        name, _, rest = self.note.partition(": ")
        return rest if name == word else ""


def blocks(language: str, pages: list[str] = PAGES) -> list[Block]:
    """All blocks in this language, page by page."""
    return [block for page in pages for block in _blocks(page) if block.language == language]


def _blocks(page: str) -> list[Block]:
    text = (REPOSITORY / page).read_text()
    return [
        Block(
            page,
            text.count("\n", 0, match.start("language")) + 1,
            match["language"],
            textwrap.dedent(match["text"]),
            match["note"] or "",
        )
        for match in _BLOCK.finditer(text)
    ]
