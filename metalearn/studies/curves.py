"""What a study keeps of its runs, and their pictures: mean and spread over seeds against calls or seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from metalearn.reports.pictures import pyplot, save_figure

__all__ = ["Trace", "draw_bands", "mean_and_spread"]

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
        lines = (levels or {}).get(y, {})
        limits = _find_limits(traces, y, lines)
        for axis, (x, x_label) in zip(row, xs.items(), strict=True):
            _draw_methods(axis, traces, x, y, baselines)
            for label, level in lines.items():
                axis.axhline(level, color="0.4", linestyle="--", linewidth=1, label=label)
            axis.set(xlabel=x_label, ylabel=y_label, ylim=limits)
            axis.grid(alpha=0.25)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), frameon=False, fontsize=8, loc="outside right center")
    figure.suptitle(title, fontsize=10)
    return save_figure(figure, path)


def _find_limits(traces: Mapping[str, Sequence[Trace]], y: str, levels: Mapping[str, float]) -> tuple[float, float]:
    """Return the range of an axis, without the first steps from random weights, which would leave no room for the rest."""
    values = [
        point[y] for runs in traces.values() for trace in runs for point in trace.points[len(trace.points) // 8 :]
    ]
    low, high = min([*values, *levels.values()]), max([*values, *levels.values()])
    margin = 0.06 * (high - low) or 1.0
    return low - margin, high + margin


def _draw_methods(axis: Any, traces: Mapping[str, Sequence[Trace]], x: str, y: str, baselines: Sequence[str]) -> None:
    colours, greys = cycle(COLOURS), cycle(GREYS)
    for name, runs in traces.items():
        grid, mean, deviation = mean_and_spread(runs, x, y)
        colour, style = (next(greys), "--") if name in baselines else (next(colours), "-")
        axis.plot(grid, mean, color=colour, label=name, linewidth=1.4, linestyle=style)
        axis.fill_between(grid, mean - deviation, mean + deviation, color=colour, alpha=0.18, linewidth=0)
