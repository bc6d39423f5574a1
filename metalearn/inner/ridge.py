"""Ridge regression in closed form."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["solve_ridge"]


def solve_ridge(features: Tensor, targets: Tensor, ridge: Tensor | float) -> Tensor:
    """The minimiser ``W`` of ``mean_i |z_i W - y_i|^2 / 2 + ridge |W|^2 / 2``: ``(Z'Z/n + ridge I)^-1 Z'Y/n``.

    Solves the smaller of the primal and the dual system, in float32 or wider; differentiable in all arguments.

    Args:
        features: ``Z`` ``[..., n, F]``.
        targets: ``Y`` ``[..., n, N]``.
        ridge: above 0.

    Returns:
        ``[..., F, N]``.
    """
    count, width = features.shape[-2:]
    across = features.transpose(-1, -2)
    if count <= width:
        eye = torch.eye(count, dtype=features.dtype, device=features.device)
        return across @ torch.linalg.solve(features @ across + count * ridge * eye, targets)
    eye = torch.eye(width, dtype=features.dtype, device=features.device)
    return torch.linalg.solve(across @ features / count + ridge * eye, across @ targets / count)
