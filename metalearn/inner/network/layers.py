"""Names and hooks of a network's layers."""

from __future__ import annotations

from torch import nn

__all__ = ["HOOKS", "find_hooked_layer", "is_hooked", "name_layers"]

HOOKS = tuple(
    key for key in nn.Module().__dict__ if key.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called"))
)
"""Attributes of a layer that hold its hooks."""


def name_layers(network: nn.Module) -> dict[int, str]:
    """The first name of every module, by its identity; that of the network is its class's."""
    return {id(layer): name or type(network).__name__ for name, layer in network.named_modules()}


def find_hooked_layer(network: nn.Module) -> str | None:
    """The name of the first layer that has hooks."""
    names = name_layers(network)
    return next((names[id(layer)] for layer in network.modules() if is_hooked(layer)), None)


def is_hooked(layer: nn.Module) -> bool:
    return bool(layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks)
