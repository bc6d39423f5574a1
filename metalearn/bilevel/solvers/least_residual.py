"""Minimal residuals of ``H v = b`` over a Krylov space whose basis is kept whole."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.linalg import vector_norm

from metalearn.bilevel.solvers.iteration import LinearSolution, Product
from metalearn.bilevel.trees import dot, scale

__all__ = ["minimise_residual", "rounding_of"]

KEPT = 2**26
"""Entries of basis vectors that are kept, 256 MiB of float32."""

DIGITS = 100
"""Units in the last place below which an eigenvalue, or what is left of a vector, is rounding."""

FIRST_LOOK = 8
"""Basis vectors before the small system is solved for the first time."""


def rounding_of(dtype: torch.dtype) -> float:
    """Return the share of a vector's length below which what is left of it is rounding."""
    return DIGITS * torch.finfo(dtype).eps


def minimise_residual(
    product: Product, b: Tensor, v: Tensor | None, limit: int, goal: Tensor, chosen: Tensor | None = None
) -> LinearSolution:
    """Return ``v`` plus the ``u`` of the Krylov space of its residual with the least ``|H (v + u) - b|``.

    Lanczos's ``H Q_k = Q_{k+1} T``, ``T`` tridiagonal ``[k+1, k]``, gives ``u = Q_k T^+ (|r|, 0, ...)``.

    Args:
        product: ``v -> H v``.
        b: ``[D]`` or ``[B, D]``.
        v: where to start; ``None`` for 0.
        limit: at most so many products, and one for the residual.
        goal: a problem is done at this residual, ``[]`` or ``[B]``.
        chosen: the problems to solve, ``[]`` or ``[B]`` bool, the others rest at ``v``; ``None`` for all.
    """
    r = b if v is None else b - product(v)
    v = torch.zeros_like(b) if v is None else v
    r = r if chosen is None else scale(chosen.to(b.dtype), r)
    limit = min(limit, b.shape[-1], max(1, KEPT // b.numel()))
    length = vector_norm(r, dim=-1)
    if limit == 0 or not bool((length > goal).any()):
        return LinearSolution(v, length, 0)
    space = _KrylovSpace(r, length)
    next_look = FIRST_LOOK
    for count in range(1, limit + 1):
        space.multiply(product)
        is_last = count == limit or space.is_closed
        if is_last or count >= next_look:
            next_look = count + max(FIRST_LOOK, count // 4)
            weights, residual = space.solve(length)
            if is_last or bool((residual <= goal).all()) or not bool(residual.isfinite().all()):
                break
        space.extend()
    v = v + (weights.unsqueeze(-2) @ space.basis).squeeze(-2)
    # that of T alone would be far below the rounding of the products
    return LinearSolution(v, vector_norm(product(v) - b, dim=-1), count)


class _KrylovSpace:
    """An orthonormal basis ``Q_k`` and the tridiagonal ``T``, of each problem.

    Attributes:
        basis: ``Q_k``, ``[..., k, D]``.
    """

    def __init__(self, r: Tensor, length: Tensor) -> None:
        self.basis = _normalise(r, length).unsqueeze(-2)
        self._rounding = min(0.01, rounding_of(r.dtype))
        self._diagonal: list[Tensor] = []
        self._below: list[Tensor] = []
        self._largest = torch.zeros_like(length)
        self._rest = r

    def multiply(self, product: Product) -> None:
        """Multiply the last basis vector, which adds a column to ``T``."""
        q = self.basis[..., -1, :]
        w = product(q)
        self._diagonal.append(dot(w, q))
        for _ in range(2):  # a single pass leaves rounding that grows
            w = w - ((self.basis @ w.unsqueeze(-1)).mT @ self.basis).squeeze(-2)
        length = vector_norm(w, dim=-1)
        self._largest = torch.maximum(self._largest, torch.maximum(self._diagonal[-1].abs(), length))
        self._below.append(torch.where(length > self._rounding * self._largest, length, 0.0))
        self._rest = w

    @property
    def is_closed(self) -> bool:
        """Whether ``H`` leads no problem out of its space."""
        return not bool((self._below[-1] > 0).any())

    def extend(self) -> None:
        """Add what the last product has outside of the space as a basis vector."""
        self.basis = torch.cat([self.basis, _normalise(self._rest, self._below[-1]).unsqueeze(-2)], -2)

    def solve(self, length: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``y = T^+ (length, 0, ...)``, ``[..., k]``, and its residual; small and dense, so in float64 on the CPU."""
        diagonal, below = (torch.stack(values, -1).to("cpu", torch.float64) for values in (self._diagonal, self._below))
        if not bool(
            diagonal.isfinite().all() & below.isfinite().all()
        ):  # the caller reports it, who knows the term and the step
            return torch.full_like(diagonal, math.nan).to(length), torch.full_like(length, math.nan)
        square = torch.diag_embed(diagonal) + torch.diag_embed(below[..., :-1], 1)
        t = torch.cat([square, torch.zeros_like(square[..., :1, :])], -2) + _place_below(below)
        first = length.to("cpu", torch.float64).unsqueeze(-1)
        right = torch.cat([first, torch.zeros_like(diagonal)], -1).unsqueeze(-1)
        y = torch.linalg.pinv(t, rtol=self._rounding) @ right
        return y.squeeze(-1).to(length), vector_norm((t @ y - right).squeeze(-1), dim=-1).to(length)


def _normalise(w: Tensor, length: Tensor) -> Tensor:
    """``w / |w|``; 0 for a problem that rests."""
    return scale(torch.where(length > 0, 1 / torch.where(length > 0, length, 1.0), 0.0), w)


def _place_below(below: Tensor) -> Tensor:
    """``[..., k+1, k]`` with these numbers below the diagonal."""
    whole = torch.diag_embed(below)
    return torch.cat([torch.zeros_like(whole[..., :1, :]), whole], -2)
