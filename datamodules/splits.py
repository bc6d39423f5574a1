"""Splitting classes by name alone, so that a split is the same on every machine, in every run."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

__all__ = ["split_by_hash"]

SALT = "metalearn split 1"


def split_by_hash(
    names: Sequence[str], sizes: tuple[int, int, int] | tuple[float, float, float]
) -> dict[str, np.ndarray]:
    """Order classes by a hash of their names, and cut.

    Args:
        names: the class names; the result does not depend on their order.
        sizes: of train, val and test: whole numbers that add up to the number of classes, or fractions of it (each of the
            three splits gets at least a sixth where there are few classes).

    Returns:
        for each split, positions in ``names``.
    """
    digests = [hashlib.sha256(f"{SALT}/{name}".encode()).hexdigest() for name in names]
    order = np.asarray(sorted(range(len(names)), key=digests.__getitem__), np.int64)
    if all(isinstance(size, int) for size in sizes):
        train, val, _ = (int(size) for size in sizes)
    else:
        least = len(names) // 6
        val, test = (max(least, round(size * len(names))) for size in sizes[1:])
        val, test = min(val, len(names) // 3), min(test, len(names) // 3)
        train = len(names) - val - test
    return {"train": order[:train], "val": order[train : train + val], "test": order[train + val :]}
