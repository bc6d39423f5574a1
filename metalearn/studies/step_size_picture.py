"""The picture of the study of step sizes: where training diverges, and the accuracy over the step size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metalearn.studies.cases import Row
from metalearn.studies.image_runs import IMAGES
from metalearn.studies.intervals import COLOURS, draw_line, draw_means, figure_in, list_values, number_axis, select
from metalearn.theory import maml_inner_step

__all__ = ["draw_step_sizes"]

TITLES = {"convex": "Quadratic tasks", "worst": "Worst case: queries at a maximum"}


def draw_step_sizes(path: Path, rows: Sequence[Row], settings: Sequence[str], outer_step: float) -> Path:
    """Draw a panel for each kind of tasks, and one for each data set."""
    with figure_in(path, len(TITLES) + len(settings)) as axes:
        for axis, (family, title) in zip(axes[0], TITLES.items(), strict=False):
            _draw_boundary(axis, select(rows, part=family), title)
        for axis, setting in zip(axes[0, len(TITLES) :], settings, strict=True):
            _draw_accuracies(axis, select(rows, part=setting, last=1), setting)
        seeds = len(list_values(select(rows, kind="boundary"), "seed"))
        text = f"Where training diverges: {seeds} seeds, outer step size {outer_step:g}/L"
        axes[0, 0].figure.suptitle(text)
    return path


def _draw_boundary(axis: Any, rows: Sequence[Row], title: str) -> None:
    grid, boundaries = select(rows, kind="grid"), select(rows, kind="boundary")
    steps = list_values(boundaries, "inner_steps")
    for diverges, marker, colour, label in (
        (False, "o", COLOURS[0], "converges in every seed"), (True, "x", COLOURS[1], "diverges in a seed"),
    ):  # fmt: skip
        places = [
            (number, size) for number in steps for size in list_values(select(grid, inner_steps=number), "alpha_L")
            if any(row["growth"] > 1 for row in select(grid, inner_steps=number, alpha_L=size)) == diverges
        ]  # fmt: skip
        axis.plot(*zip(*places, strict=True), marker, color=colour, markersize=5, linestyle="", label=label, alpha=0.8)
    axis.plot(
        steps,
        [select(boundaries, inner_steps=number)[0]["predicted"] for number in steps],
        color="black",
        label="predicted",
    )
    measured = {number: [row["alpha_L"] for row in select(boundaries, inner_steps=number)] for number in steps}
    draw_means(axis, measured, color=COLOURS[2], linestyle="--", label="measured, 95 % interval")
    axis.plot(
        steps,
        [maml_inner_step(L=1.0, steps=number) for number in steps],
        color="0.5",
        linestyle=":",
        label="guaranteed, 1/(8N)",
    )
    axis.set(yscale="log", xlabel="inner steps N", ylabel="inner step size × L", title=title)
    number_axis(axis, steps)
    axis.legend(fontsize=8)


def _draw_accuracies(axis: Any, rows: Sequence[Row], setting: str) -> None:
    for number, colour in zip(list_values(rows, "inner_steps"), COLOURS, strict=False):
        draw_line(axis, select(rows, inner_steps=number), "inner_lr", "inner_lr", "accuracy",
                  color=colour, marker="o", label=f"N = {number}")  # fmt: skip
    steps, seeds = rows[0]["step"], len(list_values(rows, "seed"))
    axis.set(xscale="log", xlabel="inner step size", ylabel="test accuracy (%)",
             title=f"{IMAGES[setting].title}, {steps} outer steps, {seeds} seeds")  # fmt: skip
    axis.legend()
