"""What remains of a network from one of its layers on: the part that works on stored features."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from metalearn.errors import ConfigError, first_line

__all__ = ["Chain", "take_remainder"]

CLOSE = 1e-9
"""How far outputs may be apart in float64, relative to the largest."""
FAILS = (RuntimeError, ValueError, IndexError, AssertionError, TypeError, NotImplementedError)
"""What torch raises where layers do not follow one another."""


class Chain(nn.Module):
    """Layers one after the other, under the names that they have in a network. A map is flattened for a ``torch.nn.Linear``."""

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self._modules.values():
            assert layer is not None
            x = layer(x.flatten(1) if x.ndim == 4 and _begins_linear(layer) else x)
        return x


def take_remainder(network: nn.Module, layer: str, examples: Tensor) -> nn.Module:
    """A copy of the layers of a network from one of them on, which gives the network's outputs from that layer's inputs.

    The layers must follow one another. That is tried in float64 and ``eval()``, on what the examples give and on noise in its
    place.

    Args:
        network: is only read.
        layer: the first layer of the rest.
        examples: ``[n, ...]``, that the network takes.

    Raises:
        ConfigError: the network does more than run its layers in their order.
    """
    path = layer.split(".")
    trial = copy.deepcopy(network).double().cpu().eval()
    for value in trial.parameters():
        value.requires_grad_(False)
    x = examples.double() if examples.is_floating_point() else examples
    order = _list_calls(trial, x)
    rest = _cut(trial, path, order)
    generator = torch.Generator().manual_seed(0)
    for is_noise in (False, True):
        features, outputs = _run(trial, layer, x, generator if is_noise else None)
        try:
            own = rest(features)
            distance = float((own - outputs).abs().max() / outputs.abs().max().clamp_min(1e-30))
        except FAILS as error:
            raise _refuse(network, layer, first_line(error)) from error
        if own.shape != outputs.shape or not distance < CLOSE:
            raise _refuse(network, layer, f"outputs of those layers differ by {distance:.1g} of the largest")
    return _cut(copy.deepcopy(network), path, order)


def _cut(network: nn.Module, path: Sequence[str], order: Sequence[str], inside: str = "") -> Chain:
    """The layers from one on, in the order of their calls, under their names.

    Args:
        network: or the submodule ``inside`` of it.
        path: the names that lead to the first layer.
        order: the names of all submodules, by their first calls.
        inside: how the names of this submodule's layers begin in the network.
    """
    name, *below = path
    names = sorted({own.removeprefix(inside).partition(".")[0] for own in order if own.startswith(inside)} - {""},
                   key=lambda own: order.index(inside + own))  # fmt: skip
    layers = {own: network.get_submodule(own) for own in names[names.index(name) :]}
    if below:
        layers[name] = _cut(layers[name], below, order, f"{inside}{name}.")
    return Chain(layers)


def _list_calls(network: nn.Module, x: Tensor) -> list[str]:
    """The names of all submodules that are called, by their first calls, and of those that hold them."""
    seen: list[str] = []

    def note(name: str) -> None:
        parts = name.split(".")
        seen.extend(".".join(parts[:depth]) for depth in range(1, len(parts) + 1))

    hooks = [
        layer.register_forward_pre_hook(lambda _, inputs, name=name: note(name))
        for name, layer in network.named_modules()
        if name
    ]
    try:
        with torch.no_grad():
            network(x)
    finally:
        for hook in hooks:
            hook.remove()
    return list(dict.fromkeys(seen))


def _begins_linear(layer: nn.Module) -> bool:
    """Whether the first thing that a layer does is a ``torch.nn.Linear``."""
    first = next((leaf for leaf in layer.modules() if not any(True for _ in leaf.children())), layer)
    return isinstance(first, nn.Linear)


def _run(network: nn.Module, layer: str, x: Tensor, noise: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """The inputs of a layer, or noise that takes their place, and the outputs of the network."""
    seen: list[Tensor] = []

    def watch(_: nn.Module, inputs: tuple[Any, ...]) -> Any:
        value = inputs[0]
        if noise is not None:
            value = torch.randn(value.shape, generator=noise, dtype=value.dtype)
        seen.append(value.clone())  # the layer may change it in place
        return (value, *inputs[1:])

    hook = network.get_submodule(layer).register_forward_pre_hook(watch)
    try:
        with torch.no_grad():
            outputs = network(x)
    finally:
        hook.remove()
    return seen[0], outputs


def _refuse(network: nn.Module, layer: str, reason: str) -> ConfigError:
    return ConfigError(
        f"layer is {layer!r}, but after it {type(network).__name__} does more than run its layers in their order ({reason}); "
        "name the whole block that holds it, or head"
    )
