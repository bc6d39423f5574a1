"""Checks of the examples that a problem on a linear model gets."""

from __future__ import annotations

from typing import Any

from metalearn.errors import ShapeError

__all__ = ["check_examples"]


def check_examples(train: Any, val: Any, classes: int, *, reads_index: bool) -> None:
    """Raise a ShapeError unless the examples of both levels fit together.

    Args:
        train: ``(index, x, y)`` of the inner loss.
        val: the same of the outer loss.
        classes: the number of labels.
        reads_index: whether the problem uses ``index``.

    Raises:
        ShapeError: a tensor of another shape, a label out of range, or other numbers of features.
    """
    for name, part in (("train", train), ("val", val)):
        _check_shapes(name, part, reads_index)
        _check_labels(name, part[2], classes)
    if train[1].shape[1] != val[1].shape[1]:
        raise ShapeError(
            f"train has {train[1].shape[1]} features and val {val[1].shape[1]}, but they must be alike; check the data"
        )


def _check_shapes(name: str, part: Any, reads_index: bool) -> None:
    index, x, y = part
    fits = len(x.shape) == 2 and y.shape == (x.shape[0],)
    if reads_index and not (fits and index.shape == y.shape):
        raise ShapeError(
            f"{name} has index {list(index.shape)}, x {list(x.shape)} and y {list(y.shape)}, but they must be [n], [n, features] "
            "and [n]; check how they are built"
        )
    if not fits:
        raise ShapeError(
            f"{name} has x {list(x.shape)} and y {list(y.shape)}, but they must be [n, features] and [n]; check both"
        )


def _check_labels(name: str, labels: Any, classes: int) -> None:
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise ShapeError(
            f"{name} has labels from {int(labels.min())} to {int(labels.max())}, but classes={classes}; they must lie in "
            f"0..{classes - 1}"
        )
