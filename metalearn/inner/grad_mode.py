"""Gradients inside evaluation, which Lightning runs with gradients switched off."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["evaluation_gradients", "usable"]


@contextlib.contextmanager
def evaluation_gradients() -> Iterator[None]:
    """Allow inner-loop gradients whatever mode the caller is in: ``no_grad``, ``inference_mode`` or neither.

    Tensors that were made under ``inference_mode`` still cannot be saved for a backward pass: pass them through
    :func:`usable` inside this context. Under a bare autocast, the cache of cast weights is off, since it would cut the
    graph of an inner step (pytorch#112583).
    """
    cached = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        torch.set_autocast_cache_enabled(cached)


def usable(tensor: Tensor) -> Tensor:
    """The tensor, or a clone of it if it was made under ``inference_mode``."""
    return tensor.clone() if tensor.is_inference() else tensor
