"""What every study does with its numbers: spread over seeds, tables on the screen, and a CSV file that grows with the runs."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from lightning.fabric.utilities.rank_zero import rank_zero_module
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from metalearn.errors import MetalearnError
from metalearn.reports.tables import write_csv

__all__ = [
    "PointsFile",
    "format_points",
    "format_spread",
    "mean_of",
    "print_gain",
    "print_rows",
    "run_named",
    "say_execution_once",
    "spread",
]

WIDEST = 10_000
"""Columns of a table on the screen: it is never folded, so that it can be copied."""

Points = Sequence[Mapping[str, float]]


class PointsFile:
    """A CSV file of the points of all runs.

    It is written anew whenever runs are added, so that what is done is kept if the rest is interrupted.

    Attributes:
        path: the file.
    """

    def __init__(self, path: Path, header: Sequence[str], digits: int | None = 10) -> None:
        """Begin without points.

        Args:
            path: the file.
            header: the names of the columns that say whose a point is.
            digits: of the points' numbers; ``None`` for all.
        """
        self.path = path
        self._header, self._digits = [*header], digits
        self._names: list[str] = []
        self._rows: list[tuple[object, ...]] = []

    def add(self, key: Sequence[object], points: Points) -> None:
        """Add the points of a run.

        Args:
            key: whose they are, one entry for each name of the header.
            points: mappings from column to number, alike in their columns.
        """
        for point in points:
            self._names = self._names or [*point]
            self._rows.append((*key, *map(self._format, point.values())))

    def write(self) -> None:
        """Write what there is.

        Raises:
            DataError: the folder cannot be written.
        """
        write_csv(self.path, [*self._header, *self._names], self._rows)

    def _format(self, value: float) -> object:
        return value if self._digits is None else f"{value:.{self._digits}g}"


@contextmanager
def run_named(name: str) -> Iterator[None]:
    """Within it, an error of ours names the run."""
    try:
        yield
    except MetalearnError as error:
        raise type(error)(f"{name}: {error}") from error


@contextmanager
def say_execution_once() -> Iterator[None]:
    """Within it, how tasks are executed is logged once, not again for every run."""
    messages: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        before = len(messages)
        messages.add(record.getMessage())
        return len(messages) > before

    logger = rank_zero_module.log  # another one where pytorch_lightning is imported beside lightning
    logger.addFilter(is_new)
    try:
        yield
    finally:
        logger.removeFilter(is_new)


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the sample standard deviation, 0 of a single value."""
    array = np.asarray(values, float)
    return float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else 0.0


def mean_of(points: Points, key: str) -> float:
    """Return the mean of one number of all points."""
    return spread([point[key] for point in points])[0]


def format_spread(values: Sequence[float], digits: int) -> str:
    """Return mean and deviation as text."""
    mean, deviation = spread(values)
    return f"{mean:.{digits}f} ± {deviation:.{digits}f}"


def format_points(points: Points, key: str, digits: int) -> str:
    """Return mean and deviation of one number of all points as text."""
    return format_spread([point[key] for point in points], digits)


def print_rows(title: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table in Markdown, as wide as it must be; the first column is text, the others are numbers."""
    table = Table(box=box.MARKDOWN)
    for number, name in enumerate(header):
        table.add_column(Text(name), justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    console = Console(width=WIDEST, force_terminal=False)
    with console.capture() as capture:
        console.print(table)
    lines = [line for line in capture.get().splitlines() if line.strip()]
    print("\n".join(["", title, "", *lines, ""]))


def print_gain(what: str, gains: Sequence[float], unit: str) -> None:
    """Print by how much one method is ahead of another, seed by seed."""
    mean, deviation = spread(gains)
    ahead = sum(gain > 0 for gain in gains)
    print(f"{what}: {mean:+.2f} ± {deviation:.2f} {unit}, above 0 in {ahead} of {len(gains)} seeds")
