"""How the inner loop is run, and why."""

from __future__ import annotations

from typing import Literal, NamedTuple

from metalearn.inner.execution.way import operator_names
from metalearn.inner.memory import MemoryMode

__all__ = ["Choice"]


class Choice(NamedTuple):
    """How the inner loop is run.

    Attributes:
        name: the execution over tasks.
        memory: the memory mode.
        own_operators: whether our operators are used for convolutions and normalisation.
        threads: whether tasks may be shared among threads.
        as_given: whether the caller's network itself is called, not our copy of its layers.
        reasons: why; first the clause that follows "because" of the execution, then a sentence for every other wish that was
            not granted.
    """

    name: Literal["sequential", "vectorized"]
    memory: MemoryMode
    own_operators: bool
    threads: bool
    as_given: bool
    reasons: list[str]

    def is_like(self, other: Choice) -> bool:
        """Whether layers and tasks are run alike."""
        return (self.name, self.own_operators, self.as_given) == (other.name, other.own_operators, other.as_given)

    @property
    def operators(self) -> list[str]:
        """The operators of ours that are used, by their names."""
        return operator_names(self.own_operators)

    def describe(self) -> list[str]:
        """What was chosen and why, in lines for the user."""
        because, *others = self.reasons
        return [f"{self.name} execution over tasks, because {because}", *others]
