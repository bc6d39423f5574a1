"""What the layers of a network do in a forward pass, watched by hooks of all modules: none is put on the caller's own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from metalearn.inner.network.layers import name_layers

__all__ = ["find_written", "note_inputs", "note_open", "note_outputs", "read_attributes", "watching_calls"]


@contextlib.contextmanager
def watching_calls(
    before: Callable[[nn.Module, tuple[Any, ...]], None] | None = None,
    after: Callable[[nn.Module, tuple[Any, ...], Any], None] | None = None,
) -> Iterator[None]:
    """Within this context ``before(layer, args)`` and ``after(layer, args, output)`` see every call of every module."""
    handles = []
    if before is not None:
        handles.append(nn.modules.module.register_module_forward_pre_hook(before))
    if after is not None:
        handles.append(nn.modules.module.register_module_forward_hook(after))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def note_open(network: nn.Module) -> Iterator[list[str]]:
    """Keep the names of the layers whose forward pass has begun and not ended, the innermost last."""
    names, entered = name_layers(network), list[str]()

    def enter(layer: nn.Module, _: Any) -> None:
        if id(layer) in names:
            entered.append(names[id(layer)])

    def leave(layer: nn.Module, *_: Any) -> None:
        if id(layer) in names:
            entered.pop()

    with watching_calls(enter, leave):
        yield entered


@contextlib.contextmanager
def note_outputs(network: nn.Module) -> Iterator[list[tuple[str, Tensor]]]:
    """Keep the output of every layer with its name, in the order of calls."""
    names, outputs = name_layers(network), list[tuple[str, Tensor]]()

    def note(layer: nn.Module, _: Any, output: Any) -> None:
        if id(layer) in names and isinstance(output, Tensor):
            outputs.append((names[id(layer)], output.detach().clone()))

    with watching_calls(after=note):
        yield outputs


@contextlib.contextmanager
def note_inputs(network: nn.Module) -> Iterator[list[tuple[str, nn.Module, Tensor]]]:
    """Keep the first input of every layer that holds no other layers, in the order of calls."""
    names, inputs = name_layers(network), list[tuple[str, nn.Module, Tensor]]()

    def note(layer: nn.Module, args: tuple[Any, ...]) -> None:
        if id(layer) in names and not any(layer.children()) and args and isinstance(args[0], Tensor):
            inputs.append((names[id(layer)], layer, args[0].detach()))

    with watching_calls(before=note):
        yield inputs


def read_attributes(network: nn.Module) -> list[dict[str, Any]]:
    """The attributes of every layer, as they are now."""
    return [dict(layer.__dict__) for layer in network.modules()]


def find_written(network: nn.Module, before: list[dict[str, Any]]) -> tuple[str, str] | None:
    """A layer and its attribute that is not what it was; torch's own layers keep nothing that a caller would read."""
    for (name, layer), state in zip(network.named_modules(), before, strict=True):
        if type(layer).__module__.startswith("torch."):
            continue
        for key, value in layer.__dict__.items():
            if key != "training" and (key not in state or state[key] is not value):
                return name or type(network).__name__, key
    return None
