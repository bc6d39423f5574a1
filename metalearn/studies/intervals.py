"""Means over seeds with their 95 % intervals (Student's t): in a table, and as lines in a picture."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from metalearn.experiments.student import spread
from metalearn.reports.pictures import pyplot, save_figure
from metalearn.reports.tables import write_csv
from metalearn.studies.cases import Row

__all__ = [
    "COLOURS", "at_equal", "draw_line", "draw_means", "figure_in", "fit_to_lines", "format_interval", "least_paid",
    "list_values", "number_axis", "select", "shade", "write_rows",
]  # fmt: skip

COLOURS = ("#2166ac", "#d6604d", "#4d9221", "#762a83", "#8c6d31")
"""Those of the gallery's figures, which colour-blind readers tell apart."""


def select(rows: Sequence[Row], **wanted: Any) -> list[Row]:
    """The rows that hold all these values."""
    return [row for row in rows if all(row.get(name) == value for name, value in wanted.items())]


def list_values(rows: Sequence[Row], name: str) -> list[Any]:
    """The values of a column, each once, in the order of the rows."""
    return list(dict.fromkeys(row[name] for row in rows if name in row))


def format_interval(values: Sequence[float], digits: int) -> str:
    """Mean and half the width of its interval as text; the mean alone of a single value, and a dash of none."""
    if not values:
        return "-"
    mean, _, width, number = spread(values)
    return f"{mean:.{digits}f}" + (f" ± {width:.{digits}f}" if number > 1 else "")


def write_rows(path: Path, rows: Sequence[Row]) -> Path:
    """Write all rows as a CSV file, whose columns are those of any row."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return write_csv(path, names, [[row.get(name, "") for name in names] for row in rows])


def least_paid(rows: Sequence[Row], paid: str) -> float:
    """The least that any run has paid in all."""
    return min((row[paid] for row in rows if row["last"] and math.isfinite(row[paid])), default=math.nan)


def at_equal(rows: Sequence[Row], paid: str, measure: str, by: str, budget: float) -> dict[Any, list[float]]:
    """The measure of every seed where so much has been paid, by a column.

    It is linear between two marks. Before the first mark it is that of the first mark. A run that diverged is left out.
    """
    values: dict[Any, list[float]] = {}
    for value in list_values(rows, by):
        for seed in list_values(rows, "seed"):
            mine = [row for row in select(rows, seed=seed, **{by: value}) if math.isfinite(row[paid])]
            if any(row["last"] for row in mine):
                places, heights = [row[paid] for row in mine], [row[measure] for row in mine]
                values.setdefault(value, []).append(float(np.interp(budget, places, heights)))
    return values


def draw_means(axis: Any, values: Mapping[Any, Sequence[float]], log: bool = False, **style: Any) -> None:
    """Draw the mean of the values at each place, with its interval; both of the logarithms where ``log`` says so."""
    lines = [average(numbers, log) for numbers in values.values()]
    means = [mean for mean, _, _ in lines]
    widths = [[mean - low for mean, low, _ in lines], [high - mean for mean, _, high in lines]]
    axis.errorbar(list(values), means, widths, capsize=3, markersize=4, **style)


def average(values: Sequence[float], log: bool) -> tuple[float, float, float]:
    """The mean and the bounds of its interval; the mean alone, three times, of a single value."""
    mean, _, width, _ = spread([math.log10(value) if log else value for value in values])
    width = 0.0 if math.isnan(width) else width
    low, middle, high = (10**bound if log else bound for bound in (mean - width, mean, mean + width))
    return middle, low, high


def number_axis(axis: Any, numbers: Sequence[int]) -> None:
    """Let an axis of whole numbers be logarithmic, with a tick at each."""
    axis.set_xscale("log")
    axis.set_xticks(list(numbers), [str(number) for number in numbers])
    axis.minorticks_off()


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
            points.append((spread([row[x] for row in mine]).mean, *average([row[y] for row in mine], log)))
    if points:
        places, means, lows, highs = zip(*points, strict=True)
        (line,) = axis.plot(places, means, **style)
        axis.fill_between(places, lows, highs, color=line.get_color(), alpha=0.18, linewidth=0)


def fit_to_lines(axes: Sequence[Any], log: bool = False, least: float = 1e-12) -> None:
    """Let a row of axes show all means; an interval of few seeds may be far wider.

    Args:
        axes: that share their vertical axis.
        log: it is logarithmic.
        least: the least value that a logarithmic axis shows.
    """
    lines = [
        line for axis in axes for line in axis.get_lines() if line.get_linestyle() != "None"
    ]  # no caps of intervals
    values = [float(value) for line in lines for value in line.get_ydata()]
    values = [value for value in values if math.isfinite(value)]
    if not values:
        return
    if log:
        axes[0].set_ylim(max(min(values), least) / 2, 3 * max(values))
    else:
        margin = 0.08 * (max(values) - min(values)) or 1.0
        axes[0].set_ylim(min(values) - margin, max(values) + margin)
