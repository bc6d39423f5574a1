"""Splitting classes by name alone, so that a split is the same on every machine, in every run."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from metalearn.datamodules.sources.listing import SPLITS
from metalearn.errors import ConfigError

__all__ = ["ClassSplit", "assign_splits", "find_empty_splits", "number_splits", "split_by_hash"]

ClassSplit = dict[str, list[str]] | tuple[float, float, float]
"""The classes of each split by name, or the fractions of train, val and test. A split that is left out, or has the fraction 0,
has no classes."""
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
        least, most = len(names) // 6, len(names) // sum(size > 0 for size in sizes)
        val, test = (min(max(least, round(size * len(names))), most) if size else 0 for size in sizes[1:])
        train = len(names) - val - test
        if not sizes[0]:  # nothing to train on: the two others share all
            val = round(sizes[1] * len(names))
            train, test = 0, len(names) - val
    return {"train": order[:train], "val": order[train : train + val], "test": order[train + val :]}


def find_empty_splits(wanted: ClassSplit) -> set[str]:
    """The splits that are meant to have no classes."""
    if isinstance(wanted, Mapping):
        return {split for split in SPLITS if not wanted.get(split)}
    return {split for split, part in zip(SPLITS, wanted, strict=False) if part == 0}


def assign_splits(names: Sequence[str], wanted: ClassSplit) -> dict[str, str]:
    """The split of each class.

    Args:
        names: the classes that there are.
        wanted: three fractions that add up to 1, or the classes of each split by name; classes that it leaves out are left out.
            A split may be left out or have the fraction 0: then it has no classes.

    Returns:
        for each class that is used, its split.

    Raises:
        ConfigError: the fractions are no fractions, or the lists name a class that is not there, or name one twice.
    """
    if not isinstance(wanted, Mapping):
        whole = len(wanted) == 3 and all(isinstance(part, (int, float)) and 0 <= part <= 1 for part in wanted)
        if not whole or abs(sum(wanted) - 1) > 1e-6:
            raise ConfigError(
                f"splits is {list(wanted)}, but fractions must be three numbers of at least 0 that add up to 1; use "
                "splits=[0.64, 0.16, 0.2], or [1, 0, 0] to train on all classes"
            )
        cut = split_by_hash(names, (float(wanted[0]), float(wanted[1]), float(wanted[2])))
        return {names[position]: split for split, positions in cut.items() for position in positions}
    if not set(wanted) <= set(SPLITS) or not any(wanted.values()):
        raise ConfigError(
            f"splits names {', '.join(map(str, wanted)) or 'nothing'}, but it must list classes for {', '.join(SPLITS)}; rename "
            "or add them"
        )
    split_of: dict[str, str] = {}
    for split, classes in wanted.items():
        for name in map(str, classes):
            if name not in names:
                raise ConfigError(
                    f"splits lists class {name} for {split}, but there is no such class; take it out, or add its images"
                )
            if split_of.setdefault(name, split) != split:
                raise ConfigError(
                    f"splits lists class {name} for {split_of[name]} and {split}, but a class belongs to one split; keep one"
                )
    return split_of


def number_splits(names: Sequence[str], split_of: Mapping[str, str]) -> dict[str, np.ndarray]:
    """For each split, the positions in ``names`` of its classes."""
    return {
        split: np.asarray([number for number, name in enumerate(names) if split_of.get(name) == split], np.int64)
        for split in SPLITS
    }
