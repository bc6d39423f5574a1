"""What adapts of a network and its adapter: the part that ``adapts`` names, and the adapter's own tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from metalearn.inner.adapters.base import AdapterPart
from metalearn.inner.parts import Part, find_head, find_scope, spell_head

__all__ = ["MovingPart"]


@dataclass
class MovingPart:
    """Finds the names of the tensors that adapt, anew when the network has other tensors.

    Attributes:
        part: of the network; ``None`` for nothing of it.
        adapter: whose tensors adapt too.
    """

    part: Part | None
    adapter: AdapterPart | None = None
    _seen: tuple[tuple[Any, ...], frozenset[str]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_seen": None}  # its keys are identities

    def names(self, network: nn.Module) -> frozenset[str]:
        """The names of all tensors that adapt.

        Raises:
            ConfigError: a pattern fits no tensor of the network.
        """
        key = tuple((name, id(value)) for name, value in network.named_parameters())
        if self._seen is None or self._seen[0] != key:
            own = [] if self.part is None else self.part.find(network)
            self._seen = key, frozenset(own).union([] if self.adapter is None else self.adapter.moving())
        return self._seen[1]

    def scope(self, network: nn.Module) -> str:
        """The smallest submodule that holds all that adapts or is changed by what adapts; ``""`` for the whole network."""
        names = [] if self.part is None else self.part.find(network)
        return find_scope([*names, *(() if self.adapter is None else self.adapter.touches)])

    def note(self, network: nn.Module) -> str | None:
        """A line that says what adapts, in numbers, and which layer counts as the head."""
        names = self.names(network)
        count = sum(value.numel() for name, value in network.named_parameters() if name in names)
        total = sum(value.numel() for value in network.parameters())
        added = 0 if self.adapter is None else self.adapter.count_added()
        lines = [
            f"{count:,} of the network's {total:,} weights adapt" + (f", and {added:,} of the adapter" if added else "")
        ]
        if self.part is not None and self.part.names_head():
            lines += filter(None, [spell_head(find_head(network))])
        return "; ".join(lines)
