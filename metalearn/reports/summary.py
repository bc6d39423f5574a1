"""The one summary at the end of a run."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from metalearn.reports.text import escape_unprintable

__all__ = ["print_summary"]


WIDEST = 10_000
"""Columns of an output that is no terminal."""


def print_summary(title: str, facts: Sequence[tuple[str, str]], commands: Sequence[tuple[str, str]] = ()) -> None:
    """Print facts as a framed table, and below it the commands to run next, unbroken so that they can be copied.

    On a terminal the table is no wider than that; elsewhere, as in a file, every fact is on one line.

    Args:
        title: the heading.
        facts: names and values.
        commands: what each command does, and the command.
    """
    console = Console(highlight=False, soft_wrap=False)
    if not console.is_terminal and not console.is_jupyter:
        console.width = WIDEST
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in facts:
        table.add_row(Text(escape_unprintable(name)), Text(escape_unprintable(value)))
    console.print()
    if facts:
        console.print(Panel(table, title=Text(title), title_align="left", expand=False))
    for what, command in commands:
        console.print(f"{what}:", style="bold")
        console.print(Text(f"  {escape_unprintable(command)}"), soft_wrap=True)
