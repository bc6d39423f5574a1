"""Weight normalisation whose second derivative is right: that of torch's fused kernel is not, as difference quotients show."""

from __future__ import annotations

import torch
from torch import Tensor

from metalearn.inner.kernels.attention import needs_plain_products

__all__ = ["normalise_weight"]


def normalise_weight(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """``g v / |v|``, the norm over all axes but ``dim`` (all, for -1), as ``torch._weight_norm``."""
    if not needs_plain_products():
        return torch._weight_norm(v, g, dim)
    if dim == -1:
        return v * (g / _take_norm(v, list(range(v.ndim))).reshape(()))
    return v * (g / _take_norm(v, [axis for axis in range(v.ndim) if axis != dim]))


def _take_norm(v: Tensor, axes: list[int]) -> Tensor:
    """The norm over these axes, which stay; ``torch.linalg.vector_norm`` errs up to 30 times as much on equal values."""
    wide = v.to(torch.float32) if v.dtype in (torch.bfloat16, torch.float16) else v
    return wide.square().sum(axes, keepdim=True).sqrt().to(v.dtype)
