"""How far, and how exactly, the inner loop is run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from metalearn.inner.adaptation import Settings

__all__ = ["Schedule"]


class Schedule(NamedTuple):
    """How far and how exactly the inner loop is run.

    Attributes:
        steps: the number of inner steps.
        settings: what the solver hands to its method, see :data:`metalearn.inner.adaptation.Settings`.
        order: 2 for the exact meta-gradient, 1 for the first-order one.
        weights: the weight of the query loss after 0, 1, ..., ``steps`` inner steps; ``None`` for that after the last alone.

    Example:
        >>> from metalearn.inner import Schedule
        >>> schedule = Schedule(steps=2, settings=[{"w": 0.1}], order=2)
        >>> [schedule.weight(step) for step in range(3)]
        [0.0, 0.0, 1.0]
    """

    steps: int
    settings: Settings
    order: int
    weights: Sequence[float] | None = None

    def weight(self, step: int) -> float:
        """The weight of the query loss after ``step`` inner steps."""
        return self.weights[step] if self.weights is not None else float(step == self.steps)
