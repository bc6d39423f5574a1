"""Deep copies of objects that hold networks."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

from torch import Tensor, nn

__all__ = ["deepcopy_state"]

Held = TypeVar("Held")


def deepcopy_state(value: Held, network: nn.Module, memo: dict[int, Any]) -> Held:
    """A deep copy of ``value``, which holds ``network``, by its ``__getstate__``.

    Weight normalisation, spectral normalisation and pruning in hooks keep a weight that they have computed, with its graph, as
    a plain attribute, which torch refuses to copy: here it is copied without its graph, until the next pass computes it again.
    """
    for layer in network.modules():
        for attribute in layer.__dict__.values():
            if isinstance(attribute, Tensor) and not attribute.is_leaf:
                memo[id(attribute)] = attribute.detach().clone()
    clone = memo[id(value)] = object.__new__(type(value))
    state: dict[str, Any] = value.__getstate__()  # type: ignore[assignment]
    clone.__dict__.update(copy.deepcopy(state, memo))
    return clone
