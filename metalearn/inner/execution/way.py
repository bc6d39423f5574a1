"""A way of running the inner loop, which is exact for a network or is not."""

from __future__ import annotations

from typing import NamedTuple

from metalearn.inner.ambient import OPERATORS
from metalearn.inner.memory import MemoryMode

__all__ = ["Way", "operator_names"]


class Way(NamedTuple):
    """A way of running the inner loop; the defaults are the plainest.

    Attributes:
        stacked: whether tasks are executed together.
        memory: the memory mode.
        own_operators: whether our operators are used.
        as_given: whether the caller's network itself is called, not our copy of its layers.

    Example:
        >>> from metalearn.inner import Way
        >>> Way(stacked=True, memory="remat")
        Way(stacked=True, memory='remat', own_operators=False, as_given=True)
    """

    stacked: bool = False
    memory: MemoryMode = "store"
    own_operators: bool = False
    as_given: bool = True

    @property
    def operators(self) -> list[str]:
        """The operators of ours that are used, by their names."""
        return operator_names(self.own_operators)


def operator_names(own_operators: bool) -> list[str]:
    """The names of our operators for :func:`~metalearn.inner.ambient.own_kernels`, or none of them."""
    return list(OPERATORS) if own_operators else []
