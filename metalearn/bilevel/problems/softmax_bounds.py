"""Bounds on the derivatives of a linear model's mean cross-entropy, from its examples alone.

``l(z) = logsumexp(z) - z_t`` has ``|grad l| = |p - e_t| <= sqrt 2``; its Hessian ``diag p - p p'`` has the norm 1/2 at most; and
the third derivative along a unit vector ``a`` is the third central moment of ``a_i`` with ``i ~ p``, at most
``R^3/(6 sqrt 3)`` for a range ``R <= sqrt 2``. With logits ``W x_i``, a sum ``1/n sum_i`` over examples turns ``|W x_i|^2`` into
at most ``|W|^2`` times the largest eigenvalue of ``X'X/n``.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["GRADIENT", "HESSIAN", "THIRD", "Design", "design_of"]

GRADIENT = math.sqrt(2)
"""The largest ``|grad l|`` in the logits."""

HESSIAN = 0.5
"""The largest ``|grad^2 l|``."""

THIRD = math.sqrt(2) / (3 * math.sqrt(3))
"""The Lipschitz constant of ``grad^2 l``."""

ITERATIONS = 40
SMALL = 512
"""Rows or columns up to which a matrix that has entries of both signs is worth a dense eigenvalue."""


class Design(NamedTuple):
    """What is known of a matrix ``X`` of examples ``[n, features]``; each number is an upper bound.

    Attributes:
        eigenvalue: of the eigenvalues of ``X'X/n``.
        row: of the length of a row.
        column: of a column's mean of ``|X_ij|``.
    """

    eigenvalue: float
    row: float
    column: float


def design_of(x: Any, bias: bool = False) -> Design:
    """The numbers of a dense or sparse matrix.

    The eigenvalue is bounded by the trace; by the Collatz-Wielandt quotient ``max_j (A w)_j / w_j`` of ``A = |X|'|X|/n`` at
    every ``w > 0`` of a power iteration, which comes down to it where no entry is negative; and is computed where entries
    have both signs and the matrix is small.

    Args:
        x: ``[n, features]``; a tensor in any layout.
        bias: whether a column of ones is appended.
    """
    matrix = _Matrix(x, bias)
    row, column = float(matrix.rows_of_squares().max().sqrt()), float(matrix.transposed(matrix.ones()).max()) / matrix.n
    bound = float(matrix.rows_of_squares().sum()) / matrix.n
    w = torch.ones(matrix.features, dtype=torch.float64, device=matrix.device)
    for _ in range(ITERATIONS):
        moved = matrix.transposed(matrix.times(w)) / matrix.n
        bound = min(bound, float((moved / w).max()))
        w = moved / moved.max().clamp(min=1e-300) + 0.01 * w  # never 0, so that every quotient is a bound
    if matrix.signed is not None and min(matrix.signed.shape) <= SMALL:
        n, features = matrix.signed.shape
        gram = matrix.signed.T @ matrix.signed if features <= n else matrix.signed @ matrix.signed.T
        bound = min(bound, float(torch.linalg.eigvalsh(gram)[-1]) / n)
    slack = 1 + 1e-9  # for the rounding of float64
    return Design(bound * slack, row * slack, column * slack)


class _Matrix:
    """``|X|`` in float64, with its ones, dense or by its entries."""

    def __init__(self, x: Any, bias: bool) -> None:
        self.n, self.features = int(x.shape[0]), int(x.shape[1]) + bias
        self.signed: Tensor | None = None
        self.dense: Tensor | None = None
        if x.layout is torch.strided:
            whole = x.detach().double()
            if bias:
                whole = torch.cat([whole, whole.new_ones(self.n, 1)], 1)
            self.dense, self.device = whole.abs(), whole.device
            self.signed = whole if bool((whole < 0).any()) else None
            return
        entries = x.detach().to_sparse_coo().coalesce()
        self.row, self.column = entries.indices()
        self.values, self.device = entries.values().double().abs(), entries.device
        if bias:
            every = torch.arange(self.n, device=self.device)
            self.row, self.column = (
                torch.cat([self.row, every]),
                torch.cat([self.column, 0 * every + self.features - 1]),
            )
            self.values = torch.cat([self.values, self.values.new_ones(self.n)])

    def ones(self) -> Tensor:
        return torch.ones(self.n, dtype=torch.float64, device=self.device)

    def times(self, w: Tensor) -> Tensor:
        """``|X| w``, ``[n]``."""
        if self.dense is not None:
            return self.dense @ w
        return torch.zeros_like(self.ones()).index_add_(0, self.row, self.values * w[self.column])

    def transposed(self, u: Tensor) -> Tensor:
        """``|X|' u``, ``[features]``."""
        if self.dense is not None:
            return self.dense.T @ u
        start = torch.zeros(self.features, dtype=torch.float64, device=self.device)
        return start.index_add_(0, self.column, self.values * u[self.row])

    def rows_of_squares(self) -> Tensor:
        """The squared length of each row."""
        if self.dense is not None:
            return self.dense.square().sum(1)
        return torch.zeros_like(self.ones()).index_add_(0, self.row, self.values.square())
