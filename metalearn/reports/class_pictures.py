"""Which classes a test takes for which: a matrix of a few classes, and the worst pairs of many."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from metalearn.reports.class_table import ClassTable, bound_share
from metalearn.reports.fonts import fit_name, list_families
from metalearn.reports.pictures import WRONG, pyplot, save_figure

__all__ = ["MOST_OF_A_MATRIX", "draw_confusions", "draw_matrix"]

MOST_OF_A_MATRIX = 25
"""Classes that a matrix has room for."""
NUMBERED = 15
"""Classes of a matrix whose cells have room for numbers."""
PAIRS = 20
ROOM = 28
"""Characters of a name."""


def draw_matrix(path: Path, table: ClassTable, title: str) -> Path | None:
    """A row for each class, and in it the share of its queries that were taken for each class.

    A share is over the tasks that have both classes; where there is none, the cell is grey.

    Args:
        path: the PNG file.
        table: of the classes.
        title: the heading.

    Returns:
        the file, or ``None`` where no query was asked.
    """
    asked = np.flatnonzero(table.tasks)
    if not len(asked) or not table.queries.sum():
        return None
    plt = pyplot()
    from matplotlib.colors import PowerNorm

    shares = 100 * table.shares()[np.ix_(asked, asked)]
    names = [fit_name(table.names[number], ROOM) for number in asked.tolist()]
    numbered = len(names) <= NUMBERED
    side = (0.42 if numbered else 0.26) * len(names)
    longest = 0.085 * max(map(len, names))
    figure, axis = plt.subplots(
        figsize=(max(side + longest + 1.6, 4.2), max(side + longest + 1.0, 3.2)), layout="constrained"
    )
    colours = plt.get_cmap("Blues").with_extremes(bad="0.88")
    scale = PowerNorm(0.5, 0, 100)  # so that a few percent can be seen
    image = axis.imshow(np.ma.masked_invalid(shares), cmap=colours, norm=scale)
    axis.set_xticks(range(len(names)), names, rotation=90, fontsize=8, fontfamily=list_families())
    axis.set_yticks(range(len(names)), names, fontsize=8, fontfamily=list_families())
    axis.set(xlabel="taken for", ylabel="class")
    axis.set_title(fit_name(title, 60), fontsize=9)
    if numbered:
        for (row, column), share in np.ndenumerate(shares):
            if np.isfinite(share):
                axis.text(column, row, _format(share), ha="center", va="center", fontsize=8,
                          color="white" if share > 36 else "0.2")  # fmt: skip
    bar = figure.colorbar(image, ax=axis, shrink=0.8, ticks=[0, 1, 5, 20, 50, 100])
    bar.set_label("% of a class's queries")
    return save_figure(figure, path)


def draw_confusions(path: Path, table: ClassTable, title: str) -> Path | None:
    """The pairs of classes that are confused most, each with the share of its queries and the share's 95 % interval.

    Args:
        path: the PNG file.
        table: of the classes.
        title: the heading.

    Returns:
        the file, or ``None`` where no class was taken for another.
    """
    pairs = table.pair_up()[:PAIRS]
    if not pairs:
        return None
    plt = pyplot()
    names = [f"{fit_name(table.names[pair.true], ROOM)} ↔ {fit_name(table.names[pair.taken], ROOM)}" for pair in pairs]
    figure, axis = plt.subplots(figsize=(7.6, 0.26 * len(pairs) + 1.2), layout="constrained")
    shares = np.asarray([pair.confused / pair.chances for pair in pairs])
    bounds = np.asarray([bound_share(pair.confused, pair.chances) for pair in pairs])
    axis.barh(range(len(pairs)), 100 * shares, xerr=100 * np.abs(bounds.T - shares), color=WRONG, alpha=0.75, height=0.7,
              error_kw={"ecolor": "0.35", "elinewidth": 0.9})  # fmt: skip
    axis.set_yticks(range(len(pairs)), names, fontsize=8, fontfamily=list_families())
    for row, pair in enumerate(pairs):
        axis.annotate(
            f"{pair.confused} of {pair.chances}", (100 * float(bounds[row, 1]), row), xytext=(4, 0), textcoords="offset points",
            va="center", fontsize=7, color="0.35",
        )  # fmt: skip
    axis.set(xlim=(0, 118 * float(bounds.max())), ylim=(len(pairs) - 0.4, -0.6))
    axis.tick_params(axis="x", labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("% of the queries of either class that were taken for the other, in tasks with both", fontsize=8)
    figure.suptitle(
        f"{fit_name(title, 60)}: the {len(pairs)} most confused pairs of {np.count_nonzero(table.tasks)} classes",
        fontsize=9,
    )
    return save_figure(figure, path)


def _format(share: float) -> str:
    return f"{share:.0f}" if share >= 1 or share == 0 else "<1"
