"""Checksums of tensors by name."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from metalearn.inner.adapters.base import PREFIX
from metalearn.inner.learner import Learner

__all__ = ["find_checksum", "find_meta_checksum"]

_KNOWN: WeakKeyDictionary[nn.Module, tuple[Any, str]] = WeakKeyDictionary()
"""The checksum of a network, and the versions of its tensors that it is of."""


def find_checksum(tensors: Mapping[str, Tensor], text: str = "") -> str:
    """SHA-256 over a text and over the names, types, shapes and values of tensors, in the order of their names."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        value = tensors[name].detach()
        digest.update(f"\n{name} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def find_meta_checksum(learner: Learner) -> str:
    """The checksum of a meta-model: of all tensors in the state dicts of its network and its adapter.

    It stays the same when they are saved and loaded.
    """
    network = learner.backbone
    adapter = {} if learner.adapter is None else learner.adapter.state_dict(prefix=PREFIX)
    tensors = {name: value for name, value in (network.state_dict() | adapter).items() if isinstance(value, Tensor)}
    if any(value.is_inference() for value in tensors.values()):  # nobody counts their versions
        return find_checksum(tensors)
    versions = [(name, value.data_ptr(), value._version, value.dtype) for name, value in tensors.items()]
    known = _KNOWN.get(network)
    if known is None or known[0] != versions:
        known = _KNOWN[network] = versions, find_checksum(tensors)
    return known[1]
