"""The examples that episodes are drawn from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

__all__ = ["Pool"]


class Pool(NamedTuple):
    """The examples that episodes are drawn from, ordered class by class.

    Attributes:
        names: a name for each class.
        counts: ``[classes]`` the examples of each.
        offsets: ``[classes]`` the number of each class's first example.
        groups: the group of each class, or ``""``.
    """

    names: list[str]
    counts: np.ndarray
    offsets: np.ndarray
    groups: list[str]

    @classmethod
    def of(cls, names: list[str], counts: Sequence[int] | np.ndarray, groups: list[str] | None = None) -> Pool:
        """A pool of classes that follow one another."""
        sizes = np.asarray(counts, np.int64)
        return cls(names, sizes, np.cumsum(sizes) - sizes, groups or [""] * len(names))
