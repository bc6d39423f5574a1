"""A picture of the inner step size in use beside what theory and the rule of thumb say of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from metalearn.reports.pictures import pyplot, save_figure
from metalearn.reports.text import escape_for_figure
from metalearn.theory.advice import StepAdvice

__all__ = ["draw_step_sizes"]

USED, ADVISED, BOUND = "#2166ac", "#d6604d", "0.35"


def draw_step_sizes(path: Path, series: Sequence[StepAdvice], title: str) -> Path:
    """The inner step size over outer steps, with the range of the convergence guarantee shaded.

    Args:
        path: the PNG file.
        series: what was measured, in the order of outer steps.
        title: the heading.
    """
    plt = pyplot()
    steps = [advice.step for advice in series]
    mark = "o" if len(series) < 30 else None
    with plt.style.context("metalearn.reports.plain"):
        figure, axis = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
        axis.plot(steps, [advice.inner_lr for advice in series], color=USED, marker=mark, label="in use")
        advised = [np.nan if advice.suggested is None else advice.suggested for advice in series]
        axis.plot(steps, advised, color=ADVISED, linestyle="--", marker=mark, label="rule of thumb")
        axis.plot(
            steps, [advice.stable for advice in series], color=BOUND, linestyle=":", label="2/L: stable on a quadratic"
        )
        guaranteed = [advice.guaranteed for advice in series]
        axis.set(yscale="log", xlabel="outer step", ylabel="inner step size alpha", title=escape_for_figure(title))
        bottom = axis.get_ylim()[0]
        axis.fill_between(steps, min(bottom, *guaranteed) / 2, guaranteed, color="0.85", step=None,
                          label="alpha L N below 1/8: convergence is proved")  # fmt: skip
        axis.set_ylim(bottom=min(bottom, *guaranteed) / 2)
        axis.xaxis.get_major_locator().set_params(integer=True)
        figure.legend(loc="outside lower center", ncols=2)
    return save_figure(figure, path)
