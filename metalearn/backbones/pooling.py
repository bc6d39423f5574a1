"""What becomes of padding: means over the positions that are none."""

from __future__ import annotations

from torch import Tensor

__all__ = ["PADDING", "average_tokens"]

PADDING = 0
"""The token that fills short sequences up."""


def average_tokens(states: Tensor, seen: Tensor) -> Tensor:
    """The mean ``[n, F]`` of states ``[n, L, F]`` over the positions where ``seen`` ``[n, L]`` is true; 0 where none is."""
    weights = seen.to(states.dtype)
    return (states * weights[..., None]).sum(1) / weights.sum(1, keepdim=True).clamp(min=1)
