"""The layers of a network that an adapter takes: by name or pattern, those of them that it can take."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from metalearn.errors import ConfigError
from metalearn.inner.parts import Part, advise, find_head, matches

__all__ = ["escape", "find_layers", "find_own_name"]

Layers = dict[str, nn.Module]
FindFault = Callable[[nn.Module], str | None]
"""Why an adapter cannot take a layer, as the end of a sentence about it; ``None`` if it can."""


def find_layers(
    network: nn.Module, patterns: str | Sequence[str], argument: str, find_fault: FindFault, name: str = "a layer"
) -> Layers:
    """The layers that patterns mean, as those of ``adapts`` do, without those that the adapter cannot take.

    Args:
        network: that holds them.
        patterns: see :class:`~metalearn.inner.parts.Part`.
        argument: how messages call them.
        find_fault: says which layers can be taken.
        name: what the adapter takes, in words.

    Raises:
        ConfigError: a pattern means no layer that can be taken, or names one that cannot.
    """
    layers = {path: layer for path, layer in network.named_modules() if layer._parameters}
    part = Part.of(patterns, argument)
    chosen: Layers = dict(layers) if part.patterns[0].startswith("!") else {}
    for pattern in part.patterns:
        meant = _find_meant(network, layers, pattern.removeprefix("!"), argument)
        if pattern.startswith("!"):
            chosen = {path: layer for path, layer in chosen.items() if path not in meant}
            continue
        faults = {path: find_fault(layer) for path, layer in meant.items()}
        if all(faults.values()):
            path, fault = next(iter(faults.items()))
            raise ConfigError(f"{argument} has {pattern!r}, but layer {path!r} {fault}; name {name} that can be taken")
        chosen |= {path: layer for path, layer in meant.items() if faults[path] is None}
    chosen = {path: layer for path, layer in chosen.items() if find_fault(layer) is None}
    if not chosen:
        raise ConfigError(f"{argument} is {patterns!r}, but that leaves no layer that can be taken; take fewer out")
    return chosen


def _find_meant(network: nn.Module, layers: Layers, pattern: str, argument: str) -> Layers:
    if pattern == "all":
        return layers
    if pattern in ("head", "body"):
        head = find_head(network, f"{argument} has {pattern!r}")
        meant = {
            path: layer
            for path, layer in layers.items()
            if (path == head or path.startswith(f"{head}.")) is (pattern == "head")
        }
    elif pattern == "norm":
        names = set(Part(("norm",), argument).find(network))
        meant = {
            path: layer for path, layer in layers.items() if {f"{path}.{key}" for key in layer._parameters} & names
        }
    else:
        meant = {path: layer for path, layer in layers.items() if matches(path, pattern)}
    if not meant:
        paths = [f"{path}.weight" for path in layers]
        raise ConfigError(
            f"{argument} has {pattern!r}, but no layer of {type(network).__name__} is meant by that; {advise(pattern, paths)}"
        )
    return meant


def find_own_name(network: nn.Module, tensor: Tensor) -> str:
    """The first name of a parameter, which is the one that counts where layers share it."""
    return next(name for name, value in network.named_parameters() if value is tensor)


def escape(name: str) -> str:
    """A layer's name without the dots that a parameter's name may not have."""
    return name.replace(".", "/")
