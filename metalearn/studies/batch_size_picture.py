"""The picture of the study of batches: the error of the meta-gradient, and what a training comes to at equal cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metalearn.studies.cases import Row
from metalearn.studies.intervals import (
    COLOURS,
    at_equal,
    draw_line,
    draw_means,
    figure_in,
    fit_to_lines,
    least_paid,
    list_values,
    number_axis,
    select,
)

__all__ = ["draw_batch_sizes"]

STYLES = {"MAML": "-", "FOMAML": "--", "ANIL": "-."}


def draw_batch_sizes(path: Path, rows: Sequence[Row], parts: Mapping[str, str]) -> Path:
    """Draw a row of panels for each kind of tasks."""
    with figure_in(path, 4, len(parts), width=3.9, height=3.3) as axes:
        for line, (part, name) in zip(axes, parts.items(), strict=True):
            noise, race = select(rows, part=part, kind="noise"), select(rows, part=part, kind="race")
            for axis, weights in zip(line[:2], ("initial", "trained"), strict=True):
                _draw_errors(axis, select(noise, weights=weights))
                fit_to_lines([axis], log=True, least=1e-3)
                axis.set_title(f"{name}: {weights} weights")
            line[0].set_ylabel("error / length of the meta-gradient")
            measure, label = ("loss", "meta-loss") if part == "linear" else ("accuracy", "test accuracy (%)")
            for axis, paid in zip(line[2:], ("calls", "seconds"), strict=True):
                budget = least_paid(race, paid)
                _draw_race(axis, race, paid, measure, budget)
                amount = f"{budget:,.0f} gradients and products" if paid == "calls" else f"{budget:.3g} CPU seconds"
                axis.set(title=f"after {amount}", ylabel=label)
            fit_to_lines(line[2:3])
            fit_to_lines(line[3:])
        axes[0, 0].legend(fontsize=8)
        axes[0, 2].legend(fontsize=8)
        seeds = ", ".join(
            f"{len(list_values(select(rows, part=part), 'seed'))} of {name}" for part, name in parts.items()
        )
        axes[0, 0].figure.suptitle(f"Tasks a batch: mean over seeds and 95 % interval (seeds: {seeds})")
    return path


def _draw_errors(axis: Any, rows: Sequence[Row]) -> None:
    for (method, style), colour in zip(STYLES.items(), COLOURS, strict=False):
        mine = select(rows, method=method)
        draw_line(axis, mine, "batch", "batch", "error", log=True, color=colour, linestyle=style, marker="o",
                  markersize=4, label=method)  # fmt: skip
        if method == "FOMAML":
            draw_line(
                axis, mine, "batch", "batch", "bias", log=True, color="0.4", linestyle=":", label="bias of FOMAML"
            )
    axis.set_yscale("log")
    axis.set_xlabel("tasks a batch")
    number_axis(axis, list_values(rows, "batch"))


def _draw_race(axis: Any, rows: Sequence[Row], paid: str, measure: str, budget: float) -> None:
    for (method, style), colour in zip(STYLES.items(), COLOURS, strict=False):
        values = at_equal(select(rows, method=method), paid, measure, "batch", budget)
        draw_means(axis, values, color=colour, linestyle=style, marker="o", label=method)
    axis.set_xlabel("tasks a batch")
    number_axis(axis, list_values(rows, "batch"))
