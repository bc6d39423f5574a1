"""The picture of the study of inner steps: a fixed step size beside one that falls, over outer steps and over gradients."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metalearn.studies.cases import Row
from metalearn.studies.image_runs import IMAGES
from metalearn.studies.intervals import draw_line, figure_in, fit_to_lines, list_values, select, shade

__all__ = ["draw_inner_steps"]

COLUMNS = [
    ("fixed", "step", "outer steps"), ("c/N", "step", "outer steps"),
    ("fixed", "calls", "gradients and HVPs"), ("c/N", "calls", "gradients and HVPs"),
]  # fmt: skip
HEADINGS = {"fixed": "fixed step size", "c/N": "step size c/N"}


LABELS = {
    "gradient_norm": "norm of the meta-gradient", "loss": "meta-loss", "accuracy": "test accuracy (%)",
}  # fmt: skip


def draw_inner_steps(path: Path, rows: Sequence[Row], settings: Sequence[str]) -> Path:
    """Draw a row of panels for each kind of tasks and each measure."""
    parts = [("worst", "worst case", "loss"), ("typical", "typical tasks", "loss")]
    parts += [(setting, IMAGES[setting].title, "accuracy") for setting in settings]
    lines = [(part, name, measure) for part, name, other in parts for measure in ("gradient_norm", other)]
    with figure_in(path, len(COLUMNS), len(lines), sharey="row", width=3.2, height=2.5) as axes:
        for line, (part, name, measure) in zip(axes, lines, strict=True):
            line[0].set_ylabel(LABELS[measure])
            for axis, (schedule, x, x_label) in zip(line, COLUMNS, strict=True):
                _draw(axis, select(rows, part=part, schedule=schedule), x, measure)
                axis.set(xlabel=x_label, title=f"{name}, {HEADINGS[schedule]}")
            fit_to_lines(line, log=measure == "gradient_norm")
        seeds = {part: len(list_values(select(rows, part=part), "seed")) for part, *_ in lines}
        text = ", ".join(f"{part}: {number} seeds" for part, number in seeds.items())
        figure = axes[0, 0].figure
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right center", title="inner steps")
        figure.suptitle(f"Multi-step MAML: mean over seeds and 95 % interval ({text})")
    return path


def _draw(axis: Any, rows: Sequence[Row], x: str, measure: str) -> None:
    numbers = list_values(rows, "inner_steps")
    is_norm = measure == "gradient_norm"
    for number, steps in enumerate(numbers):
        draw_line(axis, select(rows, inner_steps=steps), "mark", x, measure, log=is_norm,
                  color=shade(number, len(numbers)), label=f"N = {steps}", linewidth=1.5)  # fmt: skip
    if is_norm:
        axis.set_yscale("log")
    if x == "calls":
        axis.set_xscale("log")
