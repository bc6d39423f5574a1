"""The pictures of a run. matplotlib is imported when the first one is drawn."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metalearn.reports.fonts import fit_name, list_families
from metalearn.reports.tables import write_atomically
from metalearn.reports.text import escape_for_figure

__all__ = [
    "INK",
    "draw_curve",
    "draw_episode",
    "draw_predictions",
    "draw_sinusoid",
    "draw_steps",
    "is_drawable",
    "pyplot",
    "save_figure",
]

RIGHT, WRONG, INK = "#1b7837", "#b2182b", "#333333"
LINES = 8
"""Curves of a sequence that a small picture has room for."""

MOST_CLASSES = 20


def draw_episode(
    path: Path,
    support: np.ndarray,
    support_classes: np.ndarray,
    query: np.ndarray,
    classes: np.ndarray,
    predictions: np.ndarray,
    names: Sequence[str],
    title: str,
) -> Path:
    """One task as a grid: a row per class, its support images on the left and its queries with predictions on the right.

    Args:
        path: the PNG file.
        support: ``[n, C, H, W]`` in any range, or whatever else :func:`is_drawable`.
        support_classes: ``[n]`` their classes.
        query: ``[m, ...]`` alike.
        classes: ``[m]`` the true classes of the queries.
        predictions: ``[m]`` the predicted ones.
        names: a name for each class; at most 20 are drawn.
        title: the heading.
    """
    plt = pyplot()
    if len(names) > MOST_CLASSES:
        title = f"{title} (the first {MOST_CLASSES} of {len(names)} classes)"
        names = names[:MOST_CLASSES]
    per_class = [np.flatnonzero(classes == way)[:8] for way in range(len(names))]
    shown = [np.flatnonzero(support_classes == way)[:8] for way in range(len(names))]
    shots = max(len(rows) for rows in shown)
    columns = shots + max(len(rows) for rows in per_class)
    figure, axes = plt.subplots(
        len(names), columns, figsize=(0.9 * columns + 1.2, 0.95 * len(names) + 0.9), squeeze=False, layout="constrained"
    )
    for way, row in enumerate(axes):
        for axis in row:
            axis.set_axis_off()
        for shot, index in enumerate(shown[way]):
            _show(row[shot], support[index])
            row[shot].set_title(f"{way}" if shot == 0 else "", fontsize=9, color=INK, loc="left")
        for axis, index in zip(row[shots:], per_class[way], strict=False):
            _show(axis, query[index])
            right = predictions[index] == way
            axis.set_title(
                f"→ {predictions[index]}" if right else f"→ {predictions[index]} ✗",
                fontsize=9,
                color=RIGHT if right else WRONG,
            )
    accuracy = 100 * float((classes == predictions).mean())
    figure.suptitle(
        f"{title}\nleft: support (class number); right: queries → prediction; {accuracy:.0f} % right", fontsize=9
    )
    return save_figure(figure, path)


def draw_steps(path: Path, values: Mapping[int, float], trained: int, label: str, title: str) -> Path:
    """A test metric against the number of inner steps.

    Args:
        path: the PNG file.
        values: the metric after each number of inner steps; accuracies as shares.
        trained: the number of inner steps used in training, marked.
        label: the metric's name, the axis label.
        title: the heading.
    """
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(5, 3.2), layout="constrained")
    axis.plot(list(values), list(values.values()), marker="o", color="#2166ac")
    points = list(values.items())
    above = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none"}  # hides the lines below a number
    for place in choose_labelled(len(points)):
        step, value = points[place]
        axis.annotate(f"{value:.1f}" if value >= 10 else f"{value:.3g}", (step, value), xytext=(0, 7), fontsize=8,
                      textcoords="offset points", ha="center", bbox=above)  # fmt: skip
    axis.axvline(trained, color="0.6", linestyle=":", zorder=0)
    last = trained >= max(values)  # then only its left side has room
    axis.annotate(f"{trained} in training", (trained, 0.5), xycoords=axis.get_xaxis_transform(), xytext=(-4 if last else 4, 0),
                  textcoords="offset points", fontsize=8, rotation=90, ha="right" if last else "left", va="center")  # fmt: skip
    axis.set(xlabel="inner steps", ylabel=label, title=title)
    axis.margins(x=0.08, y=0.15)
    axis.xaxis.get_major_locator().set_params(integer=True)
    return save_figure(figure, path)


def choose_labelled(points: int) -> list[int]:
    """Which of so many points have room for a number: the first, the last, and at most ten between them."""
    stride = -(-points // 11)
    return sorted({0, *range(points - 1, 0, -stride)})


def draw_curve(path: Path, rows: Sequence[Mapping[str, str]], title: str) -> Path:
    """The training curve: the meta-loss, and the validation accuracy on a second axis.

    Args:
        path: the PNG file.
        rows: the rows of ``metrics.csv``; empty fields are left out.
        title: the heading.
    """
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(5.6, 3.2), layout="constrained")
    steps, losses = _column(rows, "train/loss")
    axis.plot(steps, losses, color="0.75", linewidth=0.8, label="train/loss")
    if len(losses) >= 10:
        width = max(2, len(losses) // 20)
        smooth = np.convolve(losses, np.ones(width) / width, mode="valid")
        axis.plot(steps[width - 1 :], smooth, color="0.35", label=f"mean of {width}")
    axis.set(xlabel="outer step", ylabel="meta-loss", title=title)
    lines, labels = axis.get_legend_handles_labels()
    steps, accuracies = _column(rows, "val/acc")
    if steps:
        second = axis.twinx()
        (line,) = second.plot(steps, [100 * value for value in accuracies], marker="o", color="#2166ac")
        second.set_ylabel("validation accuracy (%)", color="#2166ac")
        lines, labels = [*lines, line], [*labels, "val/acc"]
    axis.legend(lines, labels, frameon=False, fontsize=8, loc="center right")
    return save_figure(figure, path)


def draw_predictions(
    path: Path, images: np.ndarray, labels: Sequence[str], shares: Sequence[float], title: str
) -> Path:
    """A user's own queries with the predicted class and its probability.

    Args:
        path: the PNG file.
        images: ``[n, C, H, W]``; at most 40 are drawn.
        labels: the predicted class of each.
        shares: its probability.
        title: the heading.
    """
    plt = pyplot()
    count = min(len(images), 40)
    columns = min(count, 8)
    rows = -(-count // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(1.25 * columns + 0.5, 1.45 * rows + 0.6), squeeze=False,
                                layout="constrained")  # fmt: skip
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, image, label, share in zip(axes.flat, images, labels, shares, strict=False):
        _show(axis, image)
        text = f"{fit_name(label, 14)}\n{100 * share:.0f} %"
        axis.set_title(text, fontsize=8, color=INK, fontfamily=list_families())
    title = escape_for_figure(title)
    figure.suptitle(title if count == len(images) else f"{title} (the first {count} of {len(images)})", fontsize=9)
    return save_figure(figure, path)


def draw_sinusoid(
    path: Path, support: tuple[np.ndarray, np.ndarray], query: tuple[np.ndarray, np.ndarray], fits: Mapping[int, np.ndarray],
    title: str, band: tuple[np.ndarray, np.ndarray, str] | None = None,
) -> Path:  # fmt: skip
    """One regression task: its points, the true curve at the queries, and the fit after some numbers of inner steps.

    Args:
        path: the PNG file.
        support: inputs and targets ``[n]`` of the support set.
        query: inputs and targets ``[m]`` of the queries.
        fits: predictions ``[m]`` at the queries for each number of steps.
        title: the heading.
        band: the lower and the upper bound ``[m]`` after the last of these steps, and the band's name; the queries are then
            points, since they scatter.
    """
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(5.6, 3.4), layout="constrained")
    order = np.argsort(query[0])
    if band is None:
        axis.plot(query[0][order], query[1][order], color="0.6", label="queries")
    else:
        axis.fill_between(query[0][order], band[0][order], band[1][order], color="#2166ac", alpha=0.15, label=band[2])
        axis.scatter(*query, color="0.6", s=10, label="queries")
    for (step, fit), colour in zip(fits.items(), ("#d1e5f0", "#67a9cf", "#2166ac"), strict=False):
        axis.plot(query[0][order], fit[order], color=colour, label=f"{step} steps")
    axis.scatter(*support, color=WRONG, zorder=3, label="support")
    axis.set(xlabel="x", ylabel="y", title=title)
    axis.legend(frameon=False, fontsize=8)
    return save_figure(figure, path)


def _column(rows: Sequence[Mapping[str, str]], name: str) -> tuple[list[int], list[float]]:
    """A column in the order of steps: what was evaluated later may be of an earlier step."""
    kept = sorted((int(row["step"]), float(row[name])) for row in rows if row.get(name))
    return [step for step, _ in kept], [value for _, value in kept]


def is_drawable(examples: np.ndarray) -> bool:
    """Whether examples ``[n, ...]`` can stand in a grid: images, volumes, and sequences of numbers, but not of tokens."""
    return examples.size > 0 and 3 <= examples.ndim <= 5 and (examples.dtype.kind == "f" or examples.ndim > 3)


def _show(axis: Any, example: np.ndarray) -> None:
    """An image ``[C, H, W]``, the middle of a volume ``[C, D, H, W]``, a map ``[H, W]``, or the curves of a sequence.

    Channels that are neither one nor three are averaged.
    """
    values = np.nan_to_num(example.astype(np.float64))
    if values.ndim == 4:
        values = values[:, values.shape[1] // 2]
    if values.ndim == 2 and min(values.shape) <= LINES < max(values.shape):
        lines = values if values.shape[0] > values.shape[1] else values.T
        axis.plot(lines, linewidth=0.7)
        return
    if values.ndim == 3:
        colours = values.shape[0] == 3
        values = values.transpose(1, 2, 0) if colours else values.mean(0)
    low, high = float(values.min()), float(values.max())
    values = (values - low) / (high - low if high > low else 1.0)
    axis.imshow(values, cmap="gray", vmin=0, vmax=1, aspect="equal" if example.ndim > 2 else "auto")


def pyplot() -> Any:
    """matplotlib's pyplot, drawing to files where no other backend is asked for."""
    import matplotlib

    matplotlib.use("Agg", force=False)
    import matplotlib.pyplot as plt

    return plt


def save_figure(figure: Any, path: Path) -> Path:
    """Write a figure as a PNG file, and close it."""
    content = io.BytesIO()
    figure.savefig(content, dpi=130, format="png")
    pyplot().close(figure)
    return write_atomically(path, content.getvalue())
