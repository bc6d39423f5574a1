"""Solvers of ``H v = b`` where ``H`` may have curvature of any sign, as that of a network's loss has."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

from metalearn.bilevel.solvers.linear import CG, LinearSolution, LinearSolver, Product, damped
from metalearn.bilevel.trees import dot, norm, scale

__all__ = ["CGOrMinRes", "MinRes", "NormalCG", "tell_of_curvature"]

log = logging.getLogger(__name__)

KEPT = 2**26
"""Entries of basis vectors that are kept, 256 MiB of float32."""

DIGITS = 100
"""Units in the last place below which an eigenvalue, or what is left of a vector, is rounding."""


@dataclass(frozen=True, kw_only=True)
class NormalCG(LinearSolver):
    """Conjugate gradients on ``H^2 v = H b`` (CGNR): two products an iteration, for a symmetric ``H`` of any sign; the
    residual never grows."""

    def iterates(self, product: Product, b: Tensor, v: Tensor, r: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        z = product(r)
        floor = torch.finfo(b.dtype).eps * norm(b)
        p, square = z, dot(z, z)
        while True:
            along = product(p)
            length = dot(along, along)
            moves = ~((norm(r) <= floor) | (length <= 0))
            if not bool(moves.any()):
                return
            step = torch.where(moves, square / torch.where(moves, length, 1.0), 0.0)
            v, r = v + scale(step, p), r - scale(step, along)
            yield v, r
            z = product(r)
            before, square = square, dot(z, z)
            p = z + scale(torch.where(moves, square / torch.where(moves, before, 1.0), 0.0), p)


@dataclass(frozen=True, kw_only=True)
class MinRes(LinearSolver):
    """The ``v`` of the Krylov space ``span{r, H r, H^2 r, ...}`` with the least ``|H v - b|`` (Paige and Saunders 1975), for a
    symmetric ``H`` of any sign: one product an iteration, and exact after as many as ``H`` has distinct eigenvalues, since
    every basis vector is kept and made orthogonal to all before it. From 0 a singular system gets its least-squares solution of
    least length, ``H^+ b``.

    Its memory is ``iterations`` vectors like ``y``, at most 2^26 entries in all: the iterations end there.
    """

    def iterates(self, product: Product, b: Tensor, v: Tensor, r: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        raise NotImplementedError("the solution is made once, at the end")

    def solve(self, product: Product, b: Tensor, v: Tensor | None = None) -> LinearSolution:
        limit = self.max_iterations if self.iterations is None else self.iterations
        goal = torch.zeros_like(norm(b)) if self.tolerance is None else torch.full_like(norm(b), self.tolerance)
        found = least_residual(damped(product, self.damping), b, v, limit, goal)
        if self.tolerance is not None and bool((found.residual > goal).any()):
            raise self.not_reached(found.residual, found.iterations)
        return found


@dataclass(frozen=True, kw_only=True)
class CGOrMinRes(LinearSolver):
    """Conjugate gradients; a problem in which they meet curvature that is not positive, or a residual that grows, is solved
    over by :class:`MinRes` from the same start, to a residual of 1e-8 of the right-hand side (in float32 1e-5), or to
    ``tolerance``, in at most ``max_iterations`` further iterations. The other problems keep what conjugate gradients gave.
    """

    def iterates(self, product: Product, b: Tensor, v: Tensor, r: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        raise NotImplementedError("two solvers, each with iterates of its own")

    def solve(self, product: Product, b: Tensor, v: Tensor | None = None) -> LinearSolution:
        product = damped(product, self.damping)
        plain = _Resting(iterations=self.iterations, tolerance=self.tolerance, max_iterations=self.max_iterations)
        found = plain.solve(product, b, v)
        if not plain.met:
            return found
        curvature = torch.stack(plain.met).amin(0)
        wrong = curvature < math.inf
        least = max(1e-8, DIGITS * torch.finfo(b.dtype).eps)
        goal = least * norm(b) if self.tolerance is None else torch.full_like(norm(b), self.tolerance)
        over = least_residual(product, b, v, self.max_iterations, goal, wrong)
        if self.tolerance is not None and bool((over.residual > goal)[wrong].any()):
            raise self.not_reached(over.residual[wrong], over.iterations)
        return LinearSolution(
            torch.where(wrong.unsqueeze(-1), over.v, found.v),
            torch.where(wrong, over.residual, found.residual),
            found.iterations + over.iterations,
            curvature - self.damping,
        )


@dataclass(frozen=True, kw_only=True)
class _Resting(CG):
    """Conjugate gradients in which a problem rests once it has met curvature, which is written down.

    Attributes:
        met: curvatures, infinite where there was none.
    """

    met: list[Tensor] = field(default_factory=list)

    def given_up(self, residual: Tensor) -> Tensor:
        if not self.met:
            return super().given_up(residual)
        return torch.stack(self.met).amin(0) < math.inf

    def _meet_curvature(self, curvature: Tensor, wrong: Tensor) -> None:
        self.met.append(torch.where(wrong, curvature, math.inf))

    def _meet_growth(self, first: Tensor, now: Tensor, curvature: Tensor, grown: Tensor) -> None:
        self.met.append(torch.where(grown, curvature, math.inf))


def least_residual(
    product: Product, b: Tensor, v: Tensor | None, limit: int, goal: Tensor, chosen: Tensor | None = None
) -> LinearSolution:
    """``v`` plus the ``u`` of the Krylov space of its residual with the least ``|H (v + u) - b|``.

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
    length = norm(r)
    if limit == 0 or not bool((length > goal).any()):
        return LinearSolution(v, length, 0)
    small = min(0.01, DIGITS * torch.finfo(b.dtype).eps)
    basis = _unit(r, length).unsqueeze(-2)
    diagonal: list[Tensor] = []
    beside: list[Tensor] = []
    largest = torch.zeros_like(length)
    check = 8
    for count in range(1, limit + 1):
        q = basis[..., -1, :]
        w = product(q)
        diagonal.append(dot(w, q))
        for _ in range(2):  # once leaves rounding that grows
            w = w - ((basis @ w.unsqueeze(-1)).mT @ basis).squeeze(-2)
        left = norm(w)
        largest = torch.maximum(largest, torch.maximum(diagonal[-1].abs(), left))
        left = torch.where(left > small * largest, left, 0.0)
        beside.append(left)
        last = count == limit or not bool((left > 0).any())
        if last or count >= check:
            check = count + max(8, count // 4)
            weights, residual = _least(diagonal, beside, length, small)
            if last or bool((residual <= goal).all()) or not bool(residual.isfinite().all()):
                break
        basis = torch.cat([basis, _unit(w, left).unsqueeze(-2)], -2)
    v = v + (weights.unsqueeze(-2) @ basis).squeeze(-2)
    # that of T alone would be far below the rounding of the products
    return LinearSolution(v, norm(product(v) - b), count)


def _unit(w: Tensor, length: Tensor) -> Tensor:
    """``w / |w|``; 0 for a problem that rests."""
    return scale(torch.where(length > 0, 1 / torch.where(length > 0, length, 1.0), 0.0), w)


def _least(diagonal: list[Tensor], beside: list[Tensor], length: Tensor, small: float) -> tuple[Tensor, Tensor]:
    """``y = T^+ (length, 0, ...)``, ``[..., k]``, and its residual; small and dense, so in float64 on the CPU."""
    middle, below = (torch.stack(each, -1).to("cpu", torch.float64) for each in (diagonal, beside))
    if not bool(middle.isfinite().all() & below.isfinite().all()):  # for the caller, who knows the term and the step
        return torch.full_like(middle, math.nan).to(length), torch.full_like(length, math.nan)
    t = torch.diag_embed(middle) + torch.diag_embed(below[..., :-1], 1)
    t = torch.cat([t, torch.zeros_like(t[..., :1, :])], -2) + _lower(below)
    first = length.to("cpu", torch.float64).unsqueeze(-1)
    right = torch.cat([first, torch.zeros_like(middle)], -1).unsqueeze(-1)
    y = torch.linalg.pinv(t, rtol=small) @ right
    return y.squeeze(-1).to(length), norm((t @ y - right).squeeze(-1)).to(length)


def _lower(below: Tensor) -> Tensor:
    """``[..., k+1, k]`` with these numbers below the diagonal."""
    whole = torch.diag_embed(below)
    return torch.cat([torch.zeros_like(whole[..., :1, :]), whole], -2)


_TOLD: WeakSet[Any] = WeakSet()


def tell_of_curvature(teller: str, about: Any, found: LinearSolution) -> None:
    """Say in the log, once for each ``about``, that problems were solved by :class:`MinRes`."""
    about = getattr(about, "__self__", about)
    try:
        if about in _TOLD:
            return
        _TOLD.add(about)
    except TypeError:  # it has no hash, or cannot be referred to: it is said each time
        pass
    assert found.curvature is not None
    wrong = found.curvature < math.inf
    share = f" in {int(wrong.sum())} of {wrong.numel()} problems" if wrong.ndim else ""
    worst = float(found.residual[wrong].max())
    log.warning(
        f"{teller}: inner_loss has the curvature {float(found.curvature.min()):.3g}{share}, where conjugate gradients "
        f"fail, so that H v = b was solved by minimal residuals, up to {worst:.2g}, in {found.iterations} "
        "iterations; give a solver with damping= for a positive definite system, or use the estimator ITD"
    )
