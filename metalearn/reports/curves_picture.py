"""Curves of several runs in one figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from metalearn.reports.pictures import pyplot, save_figure
from metalearn.reports.text import escape_for_figure

__all__ = ["draw_curves"]

Curves = Mapping[str, tuple[list[int], list[float]]]
COLOURS = ("#2166ac", "#d6604d", "#4d9221", "#762a83", "#8c6d31", "#01665e", "#c51b7d", "#636363")
SMOOTH = 30
"""Points of a curve that is smoothed so far that these are left distinct."""


def draw_curves(path: Path, runs: Sequence[tuple[str, Curves]]) -> Path | None:
    """Training loss and validation measure of every run, against the outer step.

    Args:
        path: the PNG file.
        runs: the name of each, and its curves by the names of their metrics.

    Returns:
        the path; ``None`` where no run has a curve.
    """
    columns = [name for name in ("train/loss", choose_validation([curves for _, curves in runs]))
               if any(name in curves for _, curves in runs)]  # fmt: skip
    if not columns:
        return None
    figure, axes = pyplot().subplots(
        1, len(columns), figsize=(5.2 * len(columns), 3.6), squeeze=False, layout="constrained"
    )
    for axis, column in zip(axes[0], columns, strict=True):
        scale = 100 if column.endswith("/acc") else 1
        for number, (name, curves) in enumerate(runs):
            if column not in curves:
                continue
            steps, values = curves[column]
            colour, label = COLOURS[number % len(COLOURS)], escape_for_figure(name)
            width = max(1, len(values) // SMOOTH)
            heights = scale * np.asarray(values)
            if width > 1:
                axis.plot(steps, heights, color=colour, alpha=0.2, linewidth=0.6)
                heights = np.convolve(heights, np.ones(width) / width, mode="valid")
                steps = steps[width - 1 :]
            marker = "o" if len(steps) <= SMOOTH else None
            axis.plot(steps, heights, color=colour, label=label, marker=marker, markersize=3)
        axis.set(xlabel="outer step", ylabel=f"{column} (%)" if scale == 100 else column)
        axis.spines[["top", "right"]].set_visible(False)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=2, frameon=False, fontsize=8)
    return save_figure(figure, path)


def choose_validation(curves: Sequence[Curves]) -> str:
    """The validation measure that most runs have; accuracy where several are as common."""
    names = ["val/acc", "val/loss", *sorted({name for part in curves for name in part if name.startswith("val/")})]
    return max(names, key=lambda name: sum(name in part for part in curves))
