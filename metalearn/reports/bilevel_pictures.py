"""The pictures of a bilevel run: what it reached for which oracle calls, and what it has learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from metalearn.bilevel.algorithms import Run
from metalearn.reports.pictures import RIGHT, WRONG, pyplot, save_figure

__all__ = ["draw_costs", "draw_histogram", "draw_penalties", "draw_runs"]

COUNTS = ("gc_f", "gc_g", "jvp", "hvp")


def draw_costs(path: Path, rows: Sequence[Mapping[str, str]], title: str) -> Path:
    """The outer loss, and the validation accuracy on a second axis, against all oracle calls.

    Args:
        path: the PNG file.
        rows: the rows of ``metrics.csv``; empty fields are left out. A validation without ``val/calls`` is at the calls of the
            step that was logged before it.
        title: the heading.
    """
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(5.6, 3.2), layout="constrained")
    steps = [row for row in rows if row.get("train/loss")]
    calls = [sum(float(row[f"oracles/{name}"]) for name in COUNTS) for row in steps]
    axis.plot(calls, [float(row["train/loss"]) for row in steps], color="0.35", label="outer loss")
    axis.set(xlabel="oracle calls", ylabel="outer loss", title=title)
    lines, labels = axis.get_legend_handles_labels()
    spent, checks = 0.0, []
    for row in rows:
        if row.get("train/loss"):
            spent = sum(float(row[f"oracles/{name}"]) for name in COUNTS)
        if row.get("val/acc"):
            checks.append((float(row.get("val/calls") or spent), 100 * float(row["val/acc"])))
    if checks:
        second = axis.twinx()
        (line,) = second.plot(*zip(*checks, strict=True), marker="o", color="#2166ac")
        second.set_ylabel("validation accuracy (%)", color="#2166ac")
        lines, labels = [*lines, line], [*labels, "val/acc"]
    axis.legend(lines, labels, frameon=False, fontsize=8, loc="center right")
    return save_figure(figure, path)


def draw_runs(path: Path, runs: Mapping[str, Run], title: str = "") -> Path:
    """The outer loss and the hypergradient's norm of runs of :func:`metalearn.bilevel.run`, against oracle calls and seconds.

    Args:
        path: the PNG file.
        runs: by name, each with a history.
        title: the heading.
    """
    plt = pyplot()
    figure, axes = plt.subplots(2, 2, figsize=(9.0, 5.6), layout="constrained", sharex="col", sharey="row")
    for name, result in runs.items():
        calls = [record.gc_f + record.gc_g + record.jvp + record.hvp for record in result.history]
        seconds = [record.seconds for record in result.history]
        for row, values in zip(axes, ([r.loss for r in result.history], [r.norm for r in result.history]), strict=True):
            for axis, places in zip(row, (calls, seconds), strict=True):
                axis.plot(places, values, label=name, linewidth=1.4)
                axis.grid(alpha=0.25)
    axes[0, 0].set(ylabel="outer loss")
    axes[1, 0].set(ylabel="norm of the hypergradient", yscale="log", xlabel="oracle calls")
    axes[1, 1].set(xlabel="seconds")
    axes[0, 0].legend(frameon=False, fontsize=8)
    figure.suptitle(title)
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


def draw_penalties(path: Path, values: np.ndarray, names: Sequence[str], title: str, most: int = 15) -> Path:
    """A histogram of the logarithms of all penalties, beside the features with the least and the largest ones.

    Counts are on a logarithmic scale.

    Args:
        path: the PNG file.
        values: ``[features]``.
        names: of the features.
        title: the heading.
        most: features of each kind that are named, at most.
    """
    plt = pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.0, 4.6), layout="constrained")
    left.hist(values, bins=41, color=RIGHT, alpha=0.6, log=True)
    left.set(xlabel="logarithm of a feature's penalty", ylabel=f"count of {len(values):,} features")
    order = np.argsort(values, kind="stable")
    count = min(most, len(values) // 2)
    chosen = np.concatenate([order[:count], order[len(order) - count :]])
    middle = float(np.median(values))
    places = np.arange(len(chosen)) + (np.arange(len(chosen)) >= count)  # a gap between the two kinds
    colours = [RIGHT] * count + [WRONG] * count
    right.barh(places, values[chosen] - middle, left=middle, color=colours, alpha=0.6)
    right.set_yticks(places, [names[place] for place in chosen], fontsize=7)
    right.invert_yaxis()
    right.axvline(middle, color="0.4", linewidth=0.8)
    right.set(xlabel="logarithm of the penalty, from the median", title="penalised least, and most")
    figure.suptitle(title)
    return save_figure(figure, path)
