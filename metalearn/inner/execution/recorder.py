"""What all that stand in for steps have in common: they say what they do, give up where something fails, begin anew in a copy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

__all__ = ["Recorder", "compare"]


class Recorder(ABC):
    """Records steps, or compiles them, and stands in for them.

    Args:
        say: takes lines that say what was recorded, or why nothing is.

    Attributes:
        works: whether nothing has failed.
    """

    def __init__(self, say: Callable[[str], Any]) -> None:
        self._say = say
        self._said: set[str] = set()
        self.works = True
        self._begin()

    @abstractmethod
    def _begin(self) -> None:
        """Start with nothing recorded."""

    def __getstate__(self) -> dict[str, Any]:
        return {"_say": self._say, "works": self.works}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_say"])  # type: ignore[misc]  # is recorded again where it is needed
        self.works = state["works"]

    def _tell(self, line: str) -> None:
        self._said.add(line)
        self._say(f"compile: {line}")

    def _tell_once(self, line: str) -> None:
        if line not in self._said:
            self._tell(line)

    def _give_up(self, line: str) -> None:
        """Say why steps run as they are from now on."""
        self.works = False
        self._tell_once(line)


def compare(values: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """The difference of all tensors together, relative to their norm."""
    off = sum(float((value - right).double().square().sum()) for value, right in zip(values, exact, strict=True))
    size = sum(float(right.double().square().sum()) for right in exact)
    return (off / size) ** 0.5 if size else float(off > 0)
