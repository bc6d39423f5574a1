"""Buffers that a network writes in its forward pass: running statistics, power-iteration vectors, counters, code books.

In the inner loop every pass writes to copies, so that tasks do not meet in them. Once a training step the buffers move on: to
what a pass over each task's support set, one after another and at the initial weights, leaves in them, whichever way the tasks
are executed. Batch normalisation has its policy, and is left out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm

from metalearn.inner.ambient import recording
from metalearn.inner.generators import drawing_from, read_generators
from metalearn.inner.learner import Learner

__all__ = ["find_written", "writable_buffers", "write_buffers"]

Buffers = dict[str, Tensor]


def writable_buffers(network: nn.Module) -> Buffers:
    """The buffers of a network by name, but for those of its batch normalisation."""
    return {
        f"{name}.{key}".lstrip("."): value
        for name, layer in network.named_modules()
        if not isinstance(layer, _BatchNorm)
        for key, value in layer.named_buffers(recurse=False)
    }


@torch.no_grad()
def find_written(learner: Learner, sets: Iterable[Tensor]) -> Buffers:
    """What forward passes over these sets, one after another, leave in the buffers that they change.

    They draw what the next pass will draw again.

    Args:
        learner: in its running modes; a pass is that of its whole network at its initial weights.
        sets: examples ``[n, ...]`` of one task each.
    """
    network, left = learner.network, Buffers()

    def read(layer: nn.Module, *_: object) -> None:
        if layer is network:  # at the end of a pass what it has written is still in its place
            left.update({name: value.detach().clone() for name, value in network.named_buffers()})

    params = learner.outer()
    handle = nn.modules.module.register_module_forward_hook(read)
    try:
        with _iterating(network), recording(False):
            for x in sets:
                with drawing_from(read_generators(x)):
                    learner.outputs({**params, **left}, x)
    finally:
        handle.remove()
    before = writable_buffers(learner.backbone)
    return {name: left[name] for name in before if name in left and not _same(before[name], left[name])}


@contextlib.contextmanager
def _iterating(network: nn.Module) -> Iterator[None]:
    """Spectral normalisation goes on estimating in ``eval()`` too: the weights that are trained do not wait for it."""
    layers = [
        layer
        for layer in network.modules()
        if isinstance(layer, _SpectralNorm)
        or any(isinstance(hook, SpectralNorm) for hook in layer._forward_pre_hooks.values())
    ]
    modes = [layer.training for layer in layers]
    for layer in layers:
        layer.training = True
    try:
        yield
    finally:
        for layer, mode in zip(layers, modes, strict=True):
            layer.training = mode


@torch.no_grad()
def write_buffers(network: nn.Module, values: Buffers) -> None:
    """Put these values into the network's buffers."""
    for name, value in values.items():
        path, _, key = name.rpartition(".")
        layer = network.get_submodule(path)
        buffer = layer._buffers[key]
        if buffer is not None and buffer.shape == value.shape and not buffer.is_inference():
            buffer.copy_(value)
        else:
            layer._buffers[key] = value if buffer is None else value.to(buffer.device)


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.nan_to_num(), b.nan_to_num()) and torch.equal(a.isnan(), b.isnan())
