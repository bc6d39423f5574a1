"""Means over seeds with their 95 % intervals (Student's t): in a table, and as lines in a picture."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from metalearn.experiments.student import spread
from metalearn.reports.pictures import pyplot, save_figure
from metalearn.reports.tables import write_csv
from metalearn.studies.cases import Row

__all__ = ["COLOURS", "draw_line", "figure_in", "format_interval", "list_values", "select", "shade", "write_rows"]

COLOURS = ("#2166ac", "#d6604d", "#4d9221", "#762a83", "#8c6d31")
"""Those of the gallery's figures, which colour-blind readers tell apart."""


def select(rows: Sequence[Row], **wanted: Any) -> list[Row]:
    """The rows that hold all these values."""
    return [row for row in rows if all(row.get(name) == value for name, value in wanted.items())]


def list_values(rows: Sequence[Row], name: str) -> list[Any]:
    """The values of a column, each once, in the order of the rows."""
    return list(dict.fromkeys(row[name] for row in rows if name in row))


def format_interval(values: Sequence[float], digits: int) -> str:
    """Mean and half the width of its interval as text; the mean alone of a single value."""
    mean, _, width, number = spread(values)
    return f"{mean:.{digits}f}" + (f" ± {width:.{digits}f}" if number > 1 else "")


def write_rows(path: Path, rows: Sequence[Row]) -> Path:
    """Write all rows as a CSV file, whose columns are those of any row."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return write_csv(path, names, [[row.get(name, "") for name in names] for row in rows])


@contextmanager
def figure_in(
    path: Path, columns: int, lines: int = 1, width: float = 4.7, height: float = 3.5, **options: Any
) -> Iterator[Any]:
    """Axes ``[lines, columns]`` of a figure in the package's style, each so many inches wide and high.

    The figure is written when the block ends.
    """
    plt = pyplot()
    with plt.style.context("metalearn.reports.plain"):
        size = (width * columns, height * lines + 0.3)
        figure, axes = plt.subplots(lines, columns, figsize=size, squeeze=False, **options)
        yield axes
        save_figure(figure, path)


def shade(number: int, count: int) -> Any:
    """The colour of the ``number``-th of so many values that have an order, from dark to light."""
    return pyplot().get_cmap("viridis")(0.9 * number / max(count - 1, 1))


def draw_line(axis: Any, rows: Sequence[Row], by: str, x: str, y: str, log: bool = False, **style: Any) -> None:
    """Draw the mean of ``y`` over the rows that agree in ``by``, against the mean of ``x``, and its interval as a band.

    Args:
        axis: where.
        rows: of all seeds.
        by: the column that says which rows are averaged.
        x: the column of the horizontal axis.
        y: the column of the vertical axis; what is not finite is left out.
        log: average the logarithms of ``y``.
        style: of the line.
    """
    points = []
    for value in list_values(rows, by):
        mine = [row for row in select(rows, **{by: value}) if math.isfinite(row[y]) and not (log and row[y] <= 0)]
        if mine:
            mean, _, width, _ = spread([math.log10(row[y]) if log else row[y] for row in mine])
            width = 0.0 if math.isnan(width) else width
            bounds = [mean, mean - width, mean + width]
            points.append((spread([row[x] for row in mine]).mean, *(10**bound if log else bound for bound in bounds)))
    if points:
        places, means, lows, highs = zip(*points, strict=True)
        (line,) = axis.plot(places, means, **style)
        axis.fill_between(places, lows, highs, color=line.get_color(), alpha=0.18, linewidth=0)
