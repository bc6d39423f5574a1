"""How often each oracle was asked, in the unit of the thesis (arXiv 2108.00330, Table 2.1)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

__all__ = ["Count", "Oracle", "OracleCounts"]

Oracle = Literal["gc_f", "gc_g", "jvp", "hvp"]
"""A gradient of ``f`` or of ``g``, a product with ``grad_xy g`` or with ``grad_yy g``."""

Count = Callable[[Oracle], None]
"""Counts one call of an oracle."""


@dataclass
class OracleCounts:
    """How often each oracle was asked.

    Attributes:
        gc_f: gradients of ``f``; one in ``x`` and ``y`` together is one.
        gc_g: gradients of ``g`` in ``y``.
        jvp: products with ``grad_xy g``.
        hvp: products with ``grad_yy g``.

    Example:
        >>> from metalearn.bilevel import OracleCounts
        >>> OracleCounts(gc_f=1, gc_g=10, jvp=1, hvp=5) + OracleCounts(gc_f=1)
        OracleCounts(gc_f=2, gc_g=10, jvp=1, hvp=5)
    """

    gc_f: int = 0
    gc_g: int = 0
    jvp: int = 0
    hvp: int = 0

    def __add__(self, other: OracleCounts) -> OracleCounts:
        """Both together; ``sum(counts, OracleCounts())`` adds many."""
        if not isinstance(other, OracleCounts):
            return NotImplemented
        return OracleCounts(self.gc_f + other.gc_f, self.gc_g + other.gc_g, self.jvp + other.jvp, self.hvp + other.hvp)

    def add(self, oracle: Oracle, times: int) -> None:
        """Count calls of one oracle, in place."""
        setattr(self, oracle, getattr(self, oracle) + times)

    def as_dict(self) -> dict[str, int]:
        """The counts in plain types."""
        return dataclasses.asdict(self)
