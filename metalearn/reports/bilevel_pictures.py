"""The pictures of a bilevel run: what it reached for which oracle calls, and what it has learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from metalearn.reports.pictures import RIGHT, WRONG, pyplot, save_figure

__all__ = ["draw_costs", "draw_histogram"]

COUNTS = ("gc_f", "gc_g", "jvp", "hvp")


def draw_costs(path: Path, rows: Sequence[Mapping[str, str]], title: str) -> Path:
    """The outer loss, and the validation accuracy on a second axis, against all oracle calls.

    Args:
        path: the PNG file.
        rows: the rows of ``metrics.csv``; empty fields are left out.
        title: the heading.
    """
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(5.6, 3.2), layout="constrained")
    steps = [row for row in rows if row.get("train/loss")]
    calls = [sum(float(row[f"oracles/{name}"]) for name in COUNTS) for row in steps]
    axis.plot(calls, [float(row["train/loss"]) for row in steps], color="0.35", label="outer loss")
    axis.set(xlabel="oracle calls", ylabel="outer loss", title=title)
    lines, labels = axis.get_legend_handles_labels()
    checks = [row for row in rows if row.get("val/acc") and row.get("val/calls")]
    if checks:
        second = axis.twinx()
        (line,) = second.plot(
            [float(row["val/calls"]) for row in checks], [100 * float(row["val/acc"]) for row in checks], marker="o",
            color="#2166ac",
        )  # fmt: skip
        second.set_ylabel("validation accuracy (%)", color="#2166ac")
        lines, labels = [*lines, line], [*labels, "val/acc"]
    axis.legend(lines, labels, frameon=False, fontsize=8, loc="center right")
    return save_figure(figure, path)


def draw_histogram(path: Path, values: Mapping[str, np.ndarray], label: str, title: str) -> Path:
    """Histograms on common bins, on top of each other.

    Args:
        path: the PNG file.
        values: ``[n]`` for each name; the first is drawn green, the second red.
        label: of the horizontal axis.
        title: the heading.
    """
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(5.6, 3.2), layout="constrained")
    every = np.concatenate(list(values.values()))
    bins = np.linspace(float(every.min()), max(float(every.max()), float(every.min()) + 1e-6), 41)
    for (name, part), colour in zip(values.items(), (RIGHT, WRONG), strict=False):
        axis.hist(part, bins=bins, alpha=0.6, color=colour, label=f"{name} ({len(part):,})")
    axis.set(xlabel=label, ylabel="count", title=title)
    axis.legend(frameon=False, fontsize=8)
    return save_figure(figure, path)
