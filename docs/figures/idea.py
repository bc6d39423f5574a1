"""Draws the figure of the idea, a task, the inner loop and the outer loop: ``python docs/figures/idea.py``."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

INK, FAINT, PAPER = "#1f2933", "#9aa5b1", "#ffffff"
COLOURS = ("#2a6fbb", "#c8553d", "#3a7d44")
SUPPORT, QUERY = ("Ա", "Ճ", "Ֆ"), "Ճ"
BIG, SMALL = 23, 17.5


def main() -> None:
    """Write ``docs/_static/idea.svg``, with letters as outlines; the same bytes every time."""
    mpl.rcParams |= {"svg.hashsalt": "metalearn", "svg.fonttype": "path", "font.family": "DejaVu Sans"}
    figure = Figure(figsize=(10, 4.9))
    page = figure.add_axes((0, 0, 1, 1))
    page.set(xlim=(0, 10), ylim=(0, 4.9))
    page.axis("off")
    page.add_patch(_box(0.04, 0.04, 9.92, 4.82, PAPER, FAINT))
    draw_task(page)
    draw_inner(page)
    draw_outer(page)
    for x in (3.3, 6.66):
        page.add_patch(_arrow((x - 0.2, 2.4), (x + 0.22, 2.4), INK, 3))
    target = Path(__file__).parents[1] / "_static" / "idea.svg"
    figure.savefig(target, metadata={"Date": None}, transparent=True)


def draw_task(page: Axes) -> None:
    """Three labelled letters, and one that is to be named."""
    write_titles(page, 1.65, "Task", "a few labelled images,\nothers to name")
    for number, (letter, colour) in enumerate(zip(SUPPORT, COLOURS, strict=True)):
        x = 0.42 + 0.86 * number
        draw_tile(page, x, 2.95, letter, colour)
        page.text(x + 0.36, 2.67, "ABC"[number], color=colour, size=SMALL, ha="center", va="center", weight="bold")
    draw_tile(page, 1.28, 1.5, QUERY, FAINT)
    page.text(2.3, 1.86, "?", color=INK, size=BIG, ha="center", va="center", weight="bold")


def draw_inner(page: Axes) -> None:
    """Three steps downhill on the loss of one task."""
    write_titles(page, 5.0, "Inner loop", "a few steps adapt\nthe weights to it")
    centre = np.array([[5.3], [2.15]])
    angle = np.linspace(0, 2 * np.pi, 200)
    for radius in (0.22, 0.5, 0.78, 1.0):
        ring = centre + radius * np.array([np.cos(angle), 0.62 * np.sin(angle)])
        page.plot(*ring, color=COLOURS[0], alpha=0.35, lw=2)
    steps = [(3.95, 3.35), (4.5, 2.78), (4.9, 2.4), (5.3, 2.17)]
    for start, end in pairwise(steps):
        page.add_patch(_arrow(start, end, COLOURS[0], 3))
    page.plot(*steps[0], "o", color=INK, ms=14)
    page.plot(*steps[-1], "o", color=COLOURS[0], ms=13)


def draw_outer(page: Axes) -> None:
    """The start moves to where it is near to the solutions of all tasks."""
    write_titles(page, 8.33, "Outer loop", "learn a start that is\nnear to every task")
    before, after = (7.3, 3.35), (8.3, 2.5)
    for end, colour in zip(((9.35, 2.95), (9.15, 1.65), (7.7, 1.6)), COLOURS, strict=True):
        page.add_patch(_arrow(after, end, colour, 2.5))
        page.plot(*end, "o", color=colour, ms=13)
    page.add_patch(_arrow(before, (8.2, 2.58), INK, 4))
    page.plot(*before, "o", color=PAPER, mec=INK, mew=2.5, ms=13)
    page.plot(*after, "o", color=INK, ms=14)


def write_titles(page: Axes, x: float, title: str, text: str) -> None:
    """The name of a part above its picture, and what it does below."""
    page.text(x, 4.3, title, color=INK, size=BIG, ha="center", va="center", weight="bold")
    page.text(x, 0.72, text, color=INK, size=SMALL, ha="center", va="center", linespacing=1.25)


def draw_tile(page: Axes, x: float, y: float, letter: str, colour: str) -> None:
    """An image of a letter, framed in the colour of its class."""
    page.add_patch(_box(x, y, 0.72, 0.72, INK, colour, 4))
    page.text(x + 0.36, y + 0.34, letter, color=PAPER, size=24, ha="center", va="center")


def _box(x: float, y: float, width: float, height: float, face: str, edge: str, line: float = 1.5) -> FancyBboxPatch:
    shape = "round,pad=0,rounding_size=0.08"
    return FancyBboxPatch((x, y), width, height, boxstyle=shape, facecolor=face, edgecolor=edge, lw=line)


def _arrow(start: tuple[float, float], end: tuple[float, float], colour: str, width: float) -> FancyArrowPatch:
    return FancyArrowPatch(
        start, end, arrowstyle="-|>", mutation_scale=20, color=colour, lw=width, shrinkA=0, shrinkB=7
    )


if __name__ == "__main__":
    main()
