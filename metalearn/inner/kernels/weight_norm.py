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
        return v * (g / torch.linalg.vector_norm(v))
    others = [axis for axis in range(v.ndim) if axis != dim]
    return v * (g / torch.linalg.vector_norm(v, dim=others, keepdim=True))
