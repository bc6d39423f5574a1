"""Ridge regression in closed form."""

from __future__ import annotations

import torch
from torch import Tensor

from metalearn.inner.kernels.plain_conv import on_cpu

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
        return across @ _solve(features @ across + count * ridge * eye, targets)
    eye = torch.eye(width, dtype=features.dtype, device=features.device)
    return _solve(across @ features / count + ridge * eye, across @ targets / count)


def _solve(matrix: Tensor, right: Tensor) -> Tensor:
    """On other devices than a CPU without the question whether the matrix is singular, which would wait for the device."""
    solution: Tensor = torch.linalg.solve_ex(matrix, right, check_errors=on_cpu(matrix))[0]
    return solution
