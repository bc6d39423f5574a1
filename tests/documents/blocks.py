"""The code blocks of a page, as its reader meets them, and what is said of those that are not run.

An HTML comment in front of a block says what is special about it::

    <!-- not run: it needs two GPUs -->
    <!-- exit code: 2 -->
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

from tests.house import ROOT

NOTE = re.compile(r"<!-- (not run|exit code): (.+?) -->\s*$", re.DOTALL)
FILE_NAME = re.compile(r"# ([\w./-]+\.(?:py|yaml|csv|sh))\b")
PROGRAMS = {
    "metalearn",
    "python",
    "python3",
    "pip",
    "git",
    "torchrun",
    "srun",
    "sbatch",
    "cd",
    "export",
    "source",
    "eval",
}
SHELL = {"bash", "sh", "shell", "console"}


@dataclass(frozen=True)
class Block:
    """One code block.

    Attributes:
        page: the file.
        line: the line of the page in which the code begins, from 1.
        language: ``"python"``, ``"shell"``, ``"pycon"``, ``"yaml"``, or what else the page calls it; ``""`` for output.
        text: the code.
        reason: why it is not run; ``None`` where it is.
        exit_code: with which exit code its commands end.
    """

    page: Path
    line: int
    language: str
    text: str
    reason: str | None = None
    exit_code: int = 0

    @property
    def place(self) -> str:
        """The page and the line."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def file_name(self) -> str | None:
        """Under which name the page has its reader save the block: that of the comment in its first line."""
        name = FILE_NAME.match(self.text)
        return name[1] if name else None


def read_blocks(page: Path) -> Iterator[Block]:
    """The code blocks of a page in Markdown, in order."""
    yield from _read(page, page.read_text(), 0)


def _read(page: Path, text: str, above: int) -> Iterator[Block]:
    lines = text.splitlines()
    for token in MarkdownIt().parse(text):
        if token.type != "fence" or token.map is None:
            continue
        first = token.map[0]
        directive = re.fullmatch(r"\{([\w-]+)\}\s*(.*)", token.info.strip())
        if directive and directive[1] not in ("code-block", "code"):
            yield from _read(page, token.content, above + first + 1)
            continue
        said = directive[2] if directive else token.info.strip()
        note = NOTE.search("\n".join(lines[:first]).rstrip() or "")
        reason = note[2] if note and note[1] == "not run" else None
        code = int(note[2]) if note and note[1] == "exit code" else 0
        yield Block(page, above + first + 2, _language(said, token.content), token.content, reason, code)


def _language(said: str, text: str) -> str:
    if said in SHELL or (not said and _first_program(text) in PROGRAMS):
        return "shell"
    return said


def _first_program(text: str) -> str:
    """The program that a block begins with, behind a prompt and settings of the environment."""
    words = [word for word in text.split() if word != "$" and not re.fullmatch(r"[A-Z_]+=\S*", word)]
    return words[0] if words else ""


def pages() -> list[Path]:
    """The README, and every page of the site that is written by hand."""
    folders = ("reference", "gallery", "bilevel_examples", "_build", "auto_examples")
    written = [
        page
        for page in sorted((ROOT / "docs").rglob("*.md"))
        if page.relative_to(ROOT / "docs").parts[0] not in folders
    ]
    return [ROOT / "README.md", *written]
