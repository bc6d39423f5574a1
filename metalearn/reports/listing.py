"""A table on the screen that is data as well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from metalearn.reports.summary import WIDEST, as_plain
from metalearn.reports.text import escape_unprintable

__all__ = ["Listing"]


@dataclass(frozen=True)
class Listing:
    """Rows of one kind.

    Attributes:
        kind: what a row is, in the plural.
        columns: the heading of each column that is shown, by the key of its cells. The first one names the row.
        wraps: the keys of columns that are folded where the terminal is narrow.
        rows: cells by key, of which some are data alone.
        note: what stands below the table.
    """

    kind: str
    columns: Mapping[str, str]
    rows: Sequence[Mapping[str, Any]]
    wraps: Sequence[str] = ()
    note: str = ""

    @property
    def result(self) -> str:
        """The names of the rows, each on a line."""
        key = next(iter(self.columns))
        return "\n".join(escape_unprintable(str(row[key])) for row in self.rows)

    def as_dict(self) -> dict[str, Any]:
        """The rows by the kind, whole."""
        return {"command": "list", self.kind: as_plain(list(self.rows))}

    def __str__(self) -> str:
        """The columns that are shown, as a table in Markdown."""
        header = list(self.columns.values())
        body = [[_show(row.get(key)).replace("|", "\\|") for key in self.columns] for row in self.rows]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *body))

    def show(self) -> None:
        """Print the rows as a table that is as wide as the terminal; elsewhere every row is one line without colours."""
        console = Console(highlight=False, soft_wrap=False)
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
        for key, name in self.columns.items():
            table.add_column(Text(name), overflow="fold", no_wrap=key not in self.wraps)
        for row in self.rows:
            table.add_row(*(Text(escape_unprintable(_show(row.get(key)))) for key in self.columns))
        note = Text(self.note, style="dim")
        if console.is_terminal or console.is_jupyter:
            console.print(table, *([note] if self.note else []))
            return
        console.width = WIDEST
        with console.capture() as captured:
            console.print(table, *([note] if self.note else []))
        print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def _show(cell: Any) -> str:
    return "" if cell is None else str(cell)
