"""``metalearn runs``: a table of the runs below a folder."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from metalearn.checks import quote_value
from metalearn.cli.light_parser import LightParser
from metalearn.errors import ConfigError
from metalearn.experiments.folder import Run, find_runs
from metalearn.progress import format_seconds
from metalearn.reports.tables import write_csv
from metalearn.reports.text import escape_unprintable

__all__ = ["RunTable", "run"]

WIDE = 110
"""Columns from which on changes have a column of their own."""
NO_TERMINAL = 10_000
"""Columns of an output that is no terminal, where every run is on one line."""
NUMBERS = ("steps", "result", "time")
COLOURS = {"finished": "green", "running": "cyan", "failed": "red", "interrupted": "yellow", "unfinished": "yellow"}


@dataclass(frozen=True)
class RunTable:
    """The runs below a folder, for people and programs.

    Attributes:
        root: the folder.
        runs: the newest last.
        left_out: how many folders look like runs and could not be read.
        table: the CSV file, if one was written.
    """

    root: Path
    runs: Sequence[Run]
    left_out: int
    table: Path | None = None

    @property
    def result(self) -> str:
        """The names of the runs, the newest last."""
        return "\n".join(escape_unprintable(run.name) for run in self.runs)

    def as_dict(self) -> dict[str, Any]:
        """Every run as a mapping."""
        table = {} if self.table is None else {"table": str(self.table)}
        return {
            "folder": str(self.root),
            "runs": [run.as_dict() for run in self.runs],
            "left_out": self.left_out,
            **table,
        }

    def show(self) -> None:
        """Print the table, as wide as the terminal."""
        console = Console(highlight=False, soft_wrap=False)
        breaks = console.is_terminal or console.is_jupyter
        if not breaks:
            console.width = NO_TERMINAL
        if not self.runs:
            console.print(f"no runs in {escape_unprintable(str(self.root))}", markup=False)
        elif console.width >= WIDE:
            console.print(draw_wide(self.runs, breaks))
        else:
            for line in draw_narrow(self.runs, console.width):
                console.print(line)
        if self.left_out:
            folders = "folder holds" if self.left_out == 1 else "folders hold"
            console.print(f"{self.left_out} {folders} no run that can be read", markup=False)
        if self.table is not None:
            console.print(f"table: {escape_unprintable(str(self.table))}", markup=False, soft_wrap=True)


def run(args: Sequence[str]) -> RunTable:
    """List the runs below a folder.

    Raises:
        MetalearnError: an option is wrong, or the table cannot be written.
    """
    parser = LightParser(
        "runs", "List the runs below a folder, the newest last.",
        "  metalearn runs\n  metalearn runs runs/maml_glyphs_5w1s --csv runs.csv",
    )  # fmt: skip
    parser.add_argument("folder", nargs="?", default="runs", metavar="DIR", help="where runs are; default: runs")
    parser.add_argument("--csv", metavar="FILE", help="write the table to this file, too")
    options = parser.parse_args(args)
    root = Path(options.folder)
    if not root.is_dir():
        if options.folder != "runs":
            raise ConfigError(
                f"folder is {quote_value(options.folder)}, but there is none; give the folder that holds runs"
            )
        return RunTable(root, [], 0)
    runs, left_out = find_runs(root)
    return RunTable(root, runs, left_out, write_table(Path(options.csv), runs) if options.csv else None)


def write_table(path: Path, runs: Sequence[Run]) -> Path:
    """Write a row for each run.

    Raises:
        DataError: the file cannot be written.
    """
    rows = [{**row, "changes": " ".join(f"{name}={value}" for name, value in row["changes"].items())}
            for row in (run.as_dict() for run in runs)]  # fmt: skip
    header = list(rows[0]) if rows else ["run"]
    return write_csv(path, header, [["" if row[name] is None else row[name] for name in header] for row in rows])


def draw_wide(runs: Sequence[Run], breaks: bool) -> Table:
    """A row for each run, on several lines where it ``breaks`` at the terminal's width."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("run", overflow="fold")
    table.add_column("changes", overflow="fold", ratio=1 if breaks else None)
    for name in NUMBERS:
        table.add_column(name, no_wrap=True, justify="right")
    table.add_column("commit", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for entry in runs:
        table.add_row(
            Text(escape_unprintable(entry.name)), Text(describe_changes(entry), style="dim"),
            *map(Text, describe_numbers(entry)), Text(entry.commit or ""), style_state(entry),
        )  # fmt: skip
    return table


def draw_narrow(runs: Sequence[Run], width: int) -> Iterator[Text]:
    """A line for each run, and below it its commit and changes; a name that leaves no room has a line of its own."""
    numbers = [describe_numbers(entry) for entry in runs]
    widths = [max(map(len, column)) for column in zip(NUMBERS, *numbers, strict=True)]
    room = max(width - sum(widths) - 2 * len(widths) - max(len(entry.state) for entry in runs) - 2, 10)
    names = [escape_unprintable(entry.name) for entry in runs]
    room = min(room, max(map(len, ["run", *names])))
    lay_out = partial(_join, widths=widths)
    yield Text("run".ljust(room) + lay_out(NUMBERS) + "  state", style="bold")
    for entry, name, cells in zip(runs, names, numbers, strict=True):
        if len(name) > room:
            yield Text(name, overflow="fold")
        line = Text((name if len(name) <= room else "").ljust(room) + lay_out(cells) + "  ")
        yield line.append_text(style_state(entry))
        below = " ".join(filter(None, [entry.commit, describe_changes(entry)]))
        for part in textwrap.wrap(below, max(width - 4, 20), break_on_hyphens=False):
            yield Text(f"    {part}", style="dim")


def _join(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "".join(f"  {cell.rjust(width)}" for cell, width in zip(cells, widths, strict=True))


def style_state(run: Run) -> Text:
    """The state in its colour."""
    return Text(run.state, style=COLOURS.get(run.state, ""))


def describe_changes(run: Run) -> str:
    """The configuration, where the run's name does not say it, and the options beside it without their sections."""
    config = " ".join(name for name in run.configs if name not in Path(run.name).parts)
    changes = (
        f"{name.replace('.init_args', '').partition('.')[2] or name}={value}" for name, value in run.changes.items()
    )
    return escape_unprintable(" ".join(filter(None, [config, *changes])))


def describe_numbers(run: Run) -> list[str]:
    """What :data:`NUMBERS` heads."""
    return [
        "" if run.steps is None else str(run.steps),
        "" if run.result is None else run.result.text,
        "" if run.seconds is None else format_seconds(run.seconds),
    ]
