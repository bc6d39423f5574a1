"""Tensors by dotted names, registered in a module as if they were those of its layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from metalearn.inner.learner import Learner
from metalearn.inner.rules import Params

__all__ = ["TensorTable", "register_network"]


class _Tensors(nn.Module):
    """Holds the tensors of one layer."""


class TensorTable:
    """Where the tensors of a module are registered. They are read from there, since ``to()`` and the like replace them.

    Args:
        root: the module that gets them. Its ``state_dict`` then has the names that they are added under.
    """

    def __init__(self, root: nn.Module) -> None:
        self._root = root
        self._places: dict[str, tuple[dict[str, Any], str]] = {}

    def add_parameter(self, name: str, value: Tensor) -> None:
        """Register a parameter, for which no gradient is asked."""
        owner, key = self._find_owner(name)
        owner._parameters[key] = nn.Parameter(value, requires_grad=False)
        self._places[name] = owner._parameters, key

    def add_buffer(self, name: str, value: Tensor, persistent: bool = True) -> None:
        """Register a buffer.

        Args:
            name: with dots.
            value: the tensor itself, not a copy.
            persistent: whether it is a part of the state dict.
        """
        owner, key = self._find_owner(name)
        owner._buffers[key] = value
        if not persistent:
            owner._non_persistent_buffers_set.add(key)
        self._places[name] = owner._buffers, key

    def add_alias(self, name: str, first: str) -> None:
        """Register a tensor that is there already under a further name, as tied weights are."""
        values, key = self._places[first]
        owner, own = self._find_owner(name)
        (owner._parameters if isinstance(values[key], nn.Parameter) else owner._buffers)[own] = values[key]

    def __getitem__(self, name: str) -> Tensor:
        values, key = self._places[name]
        tensor: Tensor = values[key]
        return tensor

    def read(self, names: tuple[str, ...]) -> Params:
        """The tensors of these names, as they are now."""
        places = self._places
        return {name: places[name][0][places[name][1]] for name in names}

    def unshare(self, names: tuple[str, ...]) -> None:
        """Give the module copies of its own of these buffers."""
        for name in names:
            values, key = self._places[name]
            values[key] = values[key].detach().clone()

    def _find_owner(self, name: str) -> tuple[nn.Module, str]:
        """The module that stands for a layer, and the tensor's name in it.

        They are entered without ``register_*``, which refuses the names of methods: a layer may be called ``forward``.
        """
        *path, key = name.split(".")
        owner = self._root
        for part in path:
            if owner._modules.get(part) is None:
                owner._modules[part] = _Tensors().eval()
            child = owner._modules[part]
            assert child is not None
            owner = child
        return owner, key


def register_network(table: TensorTable, learner: Learner, params: Params, shares: TensorTable | None) -> None:
    """Register copies of a network's tensors: what adapted as parameters, all others as buffers.

    Args:
        table: gets them.
        learner: says what adapts.
        params: the parameters of the network, after adaptation.
        shares: holds tensors that did not adapt, which are then taken instead of copies.
    """
    network = learner.backbone
    moving = learner.moving()
    shapes = {name: value.shape for name, value in learner.tensors.named()}
    kept = network.state_dict().keys()
    for name, value in params.items():
        if name in moving or shapes.get(name) != value.shape:  # a head for more classes is another one
            table.add_parameter(name, value.detach().clone(memory_format=torch.contiguous_format))
        else:
            table.add_buffer(name, value.detach().clone() if shares is None else shares[name])
    for name, value in network.named_buffers():
        table.add_buffer(name, value.detach().clone() if shares is None else shares[name], persistent=name in kept)
    first = {id(value): name for name, value in network.named_parameters()}
    for name, value in network.named_parameters(remove_duplicate=False):
        if first[id(value)] != name:
            table.add_alias(name, first[id(value)])
