"""What a study keeps of its runs, and how it shows them: mean and spread over seeds, a table, a CSV file, a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from metalearn.reports.pictures import pyplot, save_figure

__all__ = ["Trace", "draw_bands", "mean_and_spread", "print_rows", "spread"]

COLOURS = ("#2166ac", "#b2182b", "#1b7837", "#762a83", "#e08214", "#35978f", "#8c510a", "#c51b7d")
GREYS = ("#999999", "#333333")


class Trace(NamedTuple):
    """One run of one method.

    Attributes:
        method: its name.
        seed: of the run.
        points: one mapping of names to numbers for each time that it was looked at.
    """

    method: str
    seed: int
    points: list[dict[str, float]]


def spread(values: Sequence[float]) -> tuple[float, float]:
    """The mean and the sample standard deviation, 0 of a single value."""
    array = np.asarray(values, float)
    return float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else 0.0


def mean_and_spread(
    traces: Sequence[Trace], x: str, y: str, places: int = 60
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mean and the deviation of ``y`` over seeds on a common grid of ``x``, between whose points it is linear.

    The grid ends where the shortest of the runs does.
    """
    columns = [np.asarray([(point[x], point[y]) for point in trace.points]).T for trace in traces]
    first, last = max(column[0][0] for column in columns), min(column[0][-1] for column in columns)
    grid = np.linspace(first, last, places)
    values = np.stack([np.interp(grid, *column) for column in columns])
    return grid, values.mean(0), values.std(0, ddof=1) if len(values) > 1 else np.zeros(places)


def draw_bands(
    path: Path,
    traces: Mapping[str, Sequence[Trace]],
    xs: Mapping[str, str],
    ys: Mapping[str, str],
    title: str,
    levels: Mapping[str, Mapping[str, float]] | None = None,
    baselines: Sequence[str] = (),
) -> Path:
    """A panel for each pair of ``x`` and ``y``, a line for each method, and a band of one deviation over seeds.

    Args:
        path: the PNG file.
        traces: the runs of each method.
        xs: the keys of the horizontal axes, one a column, and their labels.
        ys: likewise of the rows.
        title: the heading.
        levels: of some ``y``, horizontal lines with a name each.
        baselines: the methods whose lines are grey and dashed.
    """
    plt = pyplot()
    figure, axes = plt.subplots(
        len(ys),
        len(xs),
        figsize=(5.2 * len(xs), 3.3 * len(ys) + 0.6),
        squeeze=False,
        layout="constrained",
        sharey="row",
    )
    for row, (y, y_label) in zip(axes, ys.items(), strict=True):
        late = [
            point[y] for runs in traces.values() for trace in runs for point in trace.points[len(trace.points) // 8 :]
        ]
        low, high = min([*late, *(levels or {}).get(y, {}).values()]), max([*late, *(levels or {}).get(y, {}).values()])
        margin = 0.06 * (high - low) or 1.0
        for axis, (x, x_label) in zip(row, xs.items(), strict=True):
            colours, greys = cycle(COLOURS), cycle(GREYS)
            for name, runs in traces.items():
                grid, mean, deviation = mean_and_spread(runs, x, y)
                colour, style = (next(greys), "--") if name in baselines else (next(colours), "-")
                axis.plot(grid, mean, color=colour, label=name, linewidth=1.4, linestyle=style)
                axis.fill_between(grid, mean - deviation, mean + deviation, color=colour, alpha=0.18, linewidth=0)
            for label, level in (levels or {}).get(y, {}).items():
                axis.axhline(level, color="0.4", linestyle="--", linewidth=1, label=label)
            # the first steps from random weights would leave no room for the rest
            axis.set(xlabel=x_label, ylabel=y_label, ylim=(low - margin, high + margin))
            axis.grid(alpha=0.25)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), frameon=False, fontsize=8, loc="outside right center")
    figure.suptitle(title, fontsize=10)
    return save_figure(figure, path)


def print_rows(title: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table on the screen, as wide as it must be; the first column is text, the others are numbers."""
    cells = [list(map(str, row)) for row in (header, *rows)]
    widths = [max(len(row[number]) for row in cells) for number in range(len(header))]

    def line(row: Sequence[str]) -> str:
        told = [cell.ljust(width) if number == 0 else cell.rjust(width) for number, (cell, width) in
                enumerate(zip(row, widths, strict=True))]  # fmt: skip
        return f"| {' | '.join(told)} |"

    rule = [("-" * width) if number == 0 else "-" * (width - 1) + ":" for number, width in enumerate(widths)]
    print(f"\n{title}\n\n" + "\n".join([line(cells[0]), line(rule), *map(line, cells[1:])]) + "\n")
