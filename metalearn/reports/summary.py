"""The one summary at the end of a command: a framed table for people, a mapping of plain types for programs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from metalearn.reports.outcome import Fact
from metalearn.reports.text import escape_unprintable

__all__ = ["Report", "Summary", "as_plain"]

WIDEST = 10_000
"""Columns of an output that is no terminal."""


class Report(Protocol):
    """What a command returns, to be shown to people or to programs."""

    @property
    def result(self) -> str:
        """The lines that matter most, which are all that ``--quiet`` prints."""

    def as_dict(self) -> dict[str, Any]:
        """Everything, in the types of JSON."""

    def show(self) -> None:
        """Print it for people."""


@dataclass(frozen=True)
class Summary:
    """What a command has done.

    Attributes:
        title: the heading.
        facts: the lines.
        commands: what can be done next: what each command does, and the command.
        data: what is data only, and no line.
        tables: what is shown between the lines and the commands; its data are in ``data``.

    Example:
        >>> from metalearn.reports.outcome import Fact
        >>> from metalearn.reports.summary import Summary
        >>> Summary("test: mine", [Fact("test accuracy", "91.74 %", {"test": {"accuracy": {"mean": 0.9174}}})]).as_dict()
        {'test': {'accuracy': {'mean': 0.9174}}}
    """

    title: str
    facts: Sequence[Fact]
    commands: Sequence[Fact] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    tables: Sequence[Report] = ()

    @property
    def result(self) -> str:
        """The one line that matters most: of the fact that holds the result, else of the first one."""
        results = [fact for fact in self.facts if "result" in fact.data] or [*self.facts[:1]]
        return f"{results[0].name}: {results[0].text}" if results else ""

    def as_dict(self) -> dict[str, Any]:
        """Everything that is known, in the types of JSON: NaN and infinity are ``None``, paths are text.

        ``docs/howto/scripts.md`` says which keys there are.
        """
        merged: dict[str, Any] = {}
        for part in (self.data, *(fact.data for fact in (*self.facts, *self.commands))):
            _merge(merged, part)
        return as_plain(merged)

    def show(self) -> None:
        """Print the facts as a framed table, and below it the commands to run next, unbroken so that they can be copied.

        On a terminal the table is no wider than that; elsewhere, as in a file, every fact is on one line.
        """
        if not self.facts and not self.commands:
            return
        console = Console(highlight=False, soft_wrap=False)
        if not console.is_terminal and not console.is_jupyter:
            console.width = WIDEST
        table = Table.grid(padding=(0, 2))
        table.add_column(style="bold")
        table.add_column(overflow="fold")
        for fact in self.facts:
            table.add_row(Text(escape_unprintable(fact.name)), Text(escape_unprintable(fact.text)))
        console.print()
        if self.facts:
            console.print(Panel(table, title=Text(self.title), title_align="left", expand=False))
        for part in self.tables:
            part.show()
        for command in self.commands:
            console.print(f"{command.name}:", style="bold")
            console.print(Text(f"  {escape_unprintable(command.text)}"), soft_wrap=True)


def as_plain(value: Any) -> Any:
    """The value in the types of JSON: NaN and infinity become ``None``, mappings' keys text, whatever else text."""
    if isinstance(value, Mapping):
        return {str(key): as_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [as_plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return str(value)


def _merge(into: dict[str, Any], part: Mapping[str, Any]) -> None:
    """Add a part: mappings are joined, lists follow each other, anything else takes the place of what was there."""
    for key, value in part.items():
        before = into.get(key)
        if isinstance(value, Mapping):
            into[key] = before if isinstance(before, dict) else {}
            _merge(into[key], value)
        elif isinstance(value, list) and isinstance(before, list):
            into[key] = [*before, *value]
        else:
            into[key] = value
