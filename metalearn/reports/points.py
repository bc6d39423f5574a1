"""Pictures of tasks whose examples are vectors: classes in a plane, and predictions against targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from metalearn.reports.pictures import WRONG, pyplot, save_figure

__all__ = ["draw_agreement", "draw_points"]

MOST = 2000
"""Points that are drawn, at most."""


def draw_points(
    path: Path,
    support: np.ndarray,
    support_classes: np.ndarray,
    query: np.ndarray,
    classes: np.ndarray,
    predictions: np.ndarray,
    names: Sequence[str],
    title: str,
) -> Path:
    """One task of vectors in a plane: their two coordinates, or the two directions of the largest variance.

    Args:
        path: the PNG file.
        support: ``[n, d]``.
        support_classes: ``[n]`` their classes.
        query: ``[m, d]``.
        classes: ``[m]`` the true classes of the queries.
        predictions: ``[m]`` the predicted ones.
        names: a name for each class.
        title: the heading.
    """
    plt = pyplot()
    plane, labels = _plane(np.concatenate([support, query]))
    shown, asked = plane[: len(support)], plane[len(support) :]
    figure, axis = plt.subplots(figsize=(5.6, 4.4), layout="constrained")
    colours = plt.get_cmap("tab10" if len(names) <= 10 else "tab20")(np.arange(len(names)) % 20)
    axis.scatter(*asked.T, c=colours[classes], s=22, label="query, in the colour of its class")
    axis.scatter(
        *shown.T, c=colours[support_classes], s=130, marker="*", edgecolors="0.2", linewidths=0.7, label="support"
    )
    wrong = classes != predictions
    if wrong.any():
        axis.scatter(*asked[wrong].T, s=70, marker="o", facecolors="none", edgecolors=WRONG, label="predicted wrongly")
    axis.set(xlabel=labels[0], ylabel=labels[1])
    axis.legend(frameon=False, fontsize=8)
    share = 100 * float(1 - wrong.mean())
    figure.suptitle(f"{title}, {len(names)} classes: {share:.0f} % right", fontsize=9)
    return save_figure(figure, path)


def draw_agreement(path: Path, targets: np.ndarray, fits: Mapping[int, np.ndarray], title: str) -> Path:
    """One regression task: predictions against targets, after some numbers of inner steps; on the line they are equal.

    Args:
        path: the PNG file.
        targets: ``[m]``.
        fits: ``[m]`` predictions for each number of steps.
        title: the heading.
    """
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(4.6, 4.2), layout="constrained")
    stride = -(-len(targets) // MOST)
    for (step, fit), colour in zip(fits.items(), ("#a6cee3", "#67a9cf", "#2166ac"), strict=False):
        axis.scatter(targets[::stride], fit[::stride], s=12, color=colour, label=f"{step} steps")
    axis.axline((float(np.nanmin(targets)),) * 2, slope=1, color="0.6", linewidth=0.8)
    axis.set(xlabel="target", ylabel="prediction", title=title)
    axis.legend(frameon=False, fontsize=8)
    return save_figure(figure, path)


def _plane(vectors: np.ndarray) -> tuple[np.ndarray, tuple[str, str]]:
    """The vectors ``[n, d]`` in two coordinates, and what these are."""
    finite = np.nan_to_num(vectors.astype(np.float64))
    if vectors.shape[1] == 1:
        return np.concatenate([finite, np.zeros_like(finite)], 1), ("x", "")
    if vectors.shape[1] == 2:
        return finite, ("x0", "x1")
    centred = finite - finite.mean(0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    places = centred @ directions[:2].T
    if places.shape[1] < 2:
        places = np.concatenate([places, np.zeros_like(places)], 1)
    return places, ("first principal component", "second principal component")
