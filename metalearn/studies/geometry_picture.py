"""The picture of the study of geometry: curves for each geometry, and what more inner steps come to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metalearn.studies.cases import Row
from metalearn.studies.image_runs import IMAGES
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
    shade,
)

__all__ = ["draw_geometry"]

LABELS = {"loss": "meta-loss", "gradient_norm": "norm of the meta-gradient", "accuracy": "test accuracy (%)"}
PAID = {"calls": "gradients and products", "seconds": "CPU seconds"}


def draw_geometry(path: Path, rows: Sequence[Row], settings: Sequence[str]) -> Path:
    """Draw a row of panels for each kind of tasks and measure."""
    lines = [("known", "linear tasks", "loss", "calls"), ("known", "linear tasks", "gradient_norm", "calls")]
    lines += [(setting, IMAGES[setting].title, "accuracy", "seconds") for setting in settings]
    geometries = list_values(rows, "geometry")
    with figure_in(path, len(geometries) + 2, len(lines), sharey="row", width=3.5, height=3.0) as axes:
        for line, (part, name, measure, paid) in zip(axes, lines, strict=True):
            mine = select(rows, part=part)
            line[0].set_ylabel(LABELS[measure])
            for axis, geometry in zip(line, geometries, strict=False):
                _draw_curves(axis, select(mine, geometry=geometry), measure)
                axis.set(xlabel="outer steps", title=f"{name}: {geometry}")
            _draw_ends(line[-2], mine, measure, None)
            line[-2].set(xlabel="inner steps", title="at equal outer steps")
            _draw_ends(line[-1], mine, measure, paid)
            line[-1].set(xlabel="inner steps", title=f"at equal {PAID[paid]}")
            fit_to_lines(line, log=measure == "gradient_norm")
        figure = axes[0, 0].figure
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right upper", title="curves")
        figure.legend(*axes[0, -1].get_legend_handles_labels(), loc="outside right lower", title="inner loss")
        seeds = ", ".join(
            f"{name}: {len(list_values(select(rows, part=part), 'seed'))} seeds" for part, name, *_ in lines[1:]
        )
        figure.suptitle(f"ANIL: mean over seeds and 95 % interval ({seeds})")
    return path


def _draw_curves(axis: Any, rows: Sequence[Row], measure: str) -> None:
    numbers = list_values(rows, "inner_steps")
    for number, steps in enumerate(numbers):
        draw_line(axis, select(rows, inner_steps=steps), "mark", "step", measure, log=measure == "gradient_norm",
                  color=shade(number, len(numbers)), label=f"N = {steps}", linewidth=1.5)  # fmt: skip
    if measure == "gradient_norm":
        axis.set_yscale("log")


def _draw_ends(axis: Any, rows: Sequence[Row], measure: str, paid: str | None) -> None:
    """Draw the measure at the end of the runs, or where all have paid as much, over the number of inner steps."""
    for geometry, colour, style in zip(list_values(rows, "geometry"), COLOURS, ("-", "--", ":"), strict=False):
        mine = select(rows, geometry=geometry)
        ends = {steps: select(mine, inner_steps=steps, last=1) for steps in list_values(mine, "inner_steps")}
        values: Any = {steps: [row[measure] for row in last] for steps, last in ends.items()}
        if paid:
            values = at_equal(mine, paid, measure, "inner_steps", least_paid(mine, paid))
        draw_means(
            axis, values, log=measure == "gradient_norm", color=colour, linestyle=style, marker="o", label=geometry
        )
    number_axis(axis, list_values(rows, "inner_steps"))
