"""A help screen: sections of options with their texts, as wide as the terminal, in colours where it shows them."""

from __future__ import annotations

import os
import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO

__all__ = ["Option", "Screen", "Section", "print_screen"]

WIDEST = 120
"""Columns of a line, however wide the terminal is: longer ones are hard to read."""
NARROWEST = 40
INDENT = 30
"""Columns that the names of options may take; the text of a longer one begins on the next line."""


@dataclass(frozen=True)
class Option:
    """One line of a help screen, or a few.

    Attributes:
        name: as it is typed.
        text: what it does.
        example: how it is called, on a line of its own.
    """

    name: str
    text: str
    example: str = ""


@dataclass(frozen=True)
class Section:
    """Options below a heading.

    Attributes:
        title: the heading.
        options: in their order.
        note: what is said before them.
    """

    title: str
    options: Sequence[Option]
    note: str = ""


@dataclass(frozen=True)
class Screen:
    """What ``--help`` prints.

    Attributes:
        usage: how the command is called; empty for none.
        intro: what it does.
        sections: its options.
        notes: what is said at the end, a line each.
    """

    usage: str
    intro: str
    sections: Sequence[Section]
    notes: Sequence[str] = ()

    def render(self, width: int) -> list[tuple[str, str]]:
        """The text in pieces with their styles: ``""``, ``"heading"`` or ``"name"``.

        Args:
            width: columns of the longest line.
        """
        pieces = [("usage: ", "heading"), (f"{self.usage}\n", "")] if self.usage else []
        if self.intro:
            pieces.append((("\n" if pieces else "") + _fill(self.intro, width) + "\n", ""))
        names = [option.name for section in self.sections for option in section.options]
        indent = min(max((len(name) + 4 for name in names if len(name) + 4 <= INDENT), default=0), width // 3)
        for section in self.sections:
            pieces += [("\n", "")] if pieces else []
            pieces += _render_section(section, width, indent)
        if self.notes:
            pieces.append(("\n" + "".join(f"{_fill(note, width)}\n" for note in self.notes), ""))
        return pieces

    def format(self, width: int | None = None) -> str:
        """The text without styles.

        Args:
            width: columns; ``None`` for those of the terminal.
        """
        return "".join(text for text, _ in self.render(width or find_width()))


def find_width() -> int:
    """The columns of the terminal, or those that ``COLUMNS`` says; 80 where there is none."""
    return min(max(shutil.get_terminal_size().columns, NARROWEST), WIDEST)


def print_screen(screen: Screen, file: IO[str] | None = None) -> None:
    """Print a help screen, in colours where the output is a terminal and ``NO_COLOR`` is not set.

    Args:
        screen: to print.
        file: where to; ``None`` for the standard output.
    """
    from rich.console import Console
    from rich.text import Text

    console = Console(file=file, highlight=False, color_system=None if os.environ.get("NO_COLOR") else "auto")
    styles = {"": "", "heading": "bold", "name": "cyan"}
    text = Text.assemble(*((part, styles[style]) for part, style in screen.render(find_width())), end="")
    console.print(text, soft_wrap=True, end="")


def _render_section(section: Section, width: int, indent: int) -> list[tuple[str, str]]:
    pieces = [(f"{section.title}:\n", "heading")]
    if section.note:
        pieces.append((textwrap.indent(_fill(section.note, width - 2), "  ") + "\n", ""))
    for option in section.options:
        lines = textwrap.wrap(option.text, width - indent, break_on_hyphens=False)
        lines += [option.example] if option.example else []
        fits = len(option.name) + 4 <= indent
        pieces += [("  ", ""), (option.name, "name")]
        if fits and lines:
            pieces.append((" " * (indent - 2 - len(option.name)) + lines.pop(0), ""))
        pieces.append(("\n" + "".join(f"{' ' * indent}{line}\n" for line in lines), ""))
    return pieces


def _fill(text: str, width: int) -> str:
    return textwrap.fill(text, width, break_on_hyphens=False)
