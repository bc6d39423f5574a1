"""The tensors of a network and of its adapter, by name."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from metalearn.inner.adapters.base import PREFIX, AdapterPart, Read
from metalearn.inner.rules import Params

__all__ = ["Tensors", "as_double"]


class Tensors:
    """Reads the tensors of a network and of its adapter, and merges the two for a forward pass.

    Args:
        network: the caller's.
        adapter: what is added to it; ``None`` for nothing.
    """

    def __init__(self, network: nn.Module, adapter: AdapterPart | None) -> None:
        self._network, self._adapter = network, adapter

    def named(self) -> Iterator[tuple[str, Tensor]]:
        """The parameters of both, those of the adapter under names that no network has."""
        yield from self._network.named_parameters()
        if self._adapter is not None:
            yield from ((PREFIX + name, value) for name, value in self._adapter.named_parameters())

    def starts(self) -> Params:
        """What starts anew in each task, see :meth:`AdapterPart.starts`."""
        return {} if self._adapter is None else self._adapter.starts()

    def reader(self, params: Params, in_double: bool) -> Read:
        """Gives a tensor by its name: of ``params``, or else as network and adapter have it."""

        def read(name: str) -> Tensor:
            if name in params:
                return params[name]
            starts = self.starts()
            owner = self._adapter if name.startswith(PREFIX) else self._network
            assert owner is not None
            value = starts[name] if name in starts else owner.get_parameter(name.removeprefix(PREFIX))
            return as_double(value) if in_double else value

        return read

    def merge(self, params: Params, in_double: bool) -> Params:
        """The tensors of the network alone, with what the adapter makes of them."""
        if self._adapter is None:
            return params
        if not self._adapter.trains_network:  # no graph is kept to what nothing trains
            fixed = {name: value.detach() for name, value in self._network.named_parameters()}
            params = {name: as_double(value) if in_double else value for name, value in fixed.items()} | params
        own = {name: value for name, value in params.items() if not name.startswith(PREFIX)}
        return own | self._adapter.merge(self.reader(params, in_double))


def as_double(value: Tensor) -> Tensor:
    """The values in float64, without a graph; other kinds of numbers as they are."""
    return value.detach().double() if value.is_floating_point() else value
