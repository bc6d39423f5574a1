"""Solvers of ``H v = b`` where ``H`` may have curvature of any sign, as that of a network's loss has."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor
from torch.linalg import vector_norm

from metalearn.bilevel.solvers.curvature import SetAside
from metalearn.bilevel.solvers.iteration import LinearSolution, Product, damp, rounding_level, tolerance_error
from metalearn.bilevel.solvers.least_residual import minimise_residual, rounding_of
from metalearn.bilevel.solvers.linear import CG, LinearSolver, iterate_conjugate_gradients
from metalearn.bilevel.trees import dot, scale

__all__ = ["CGOrMinRes", "MinRes", "NormalCG", "report_curvature"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class NormalCG(LinearSolver):
    """Conjugate gradients on ``H^2 v = H b`` (CGNR), for a symmetric ``H`` of any sign.

    An iteration takes two products, and the residual never grows.

    Example:
        >>> import torch
        >>> from metalearn.bilevel import NormalCG
        >>> diagonal = torch.tensor([1.0, -4.0])
        >>> solution = NormalCG(iterations=2).solve(lambda v: diagonal * v, torch.ones(2))
        >>> torch.allclose(solution.v, torch.tensor([1.0, -0.25]), atol=1e-5)
        True
    """

    def iterates(self, product: Product, b: Tensor, v: Tensor, r: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        z = product(r)
        floor = rounding_level(b)
        p, square = z, dot(z, z)
        while True:
            along = product(p)
            length = dot(along, along)
            moves = ~((vector_norm(r, dim=-1) <= floor) | (length <= 0))
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
    """The ``v`` of the Krylov space ``span{r, H r, H^2 r, ...}`` with the least ``|H v - b|`` (Paige and Saunders 1975).

    It is for a symmetric ``H`` of any sign, with one product an iteration. Every basis vector is kept and made orthogonal to
    all before it. So it is exact after as many iterations as ``H`` has distinct eigenvalues. From 0 a singular system
    gets its least-squares solution of least length, ``H^+ b``.

    Its memory is ``iterations`` vectors like ``y``, at most 2^26 entries in all: the iterations end there.

    Example:
        >>> import torch
        >>> from metalearn.bilevel import MinRes
        >>> diagonal = torch.tensor([1.0, -4.0])
        >>> solution = MinRes(iterations=2).solve(lambda v: diagonal * v, torch.ones(2))
        >>> torch.allclose(solution.v, torch.tensor([1.0, -0.25]), atol=1e-5)
        True
    """

    def solve(self, product: Product, b: Tensor, v: Tensor | None = None) -> LinearSolution:
        limit = self.max_iterations if self.iterations is None else self.iterations
        goal = torch.full_like(vector_norm(b, dim=-1), self.tolerance or 0.0)
        solution = minimise_residual(damp(product, self.damping), b, v, limit, goal)
        if self.tolerance is not None and bool((solution.residual > goal).any()):
            raise tolerance_error(type(self).__name__, solution.residual, solution.iterations, self.tolerance)
        return solution


@dataclass(frozen=True, kw_only=True)
class CGOrMinRes(LinearSolver):
    """Conjugate gradients, and minimal residuals for the problems in which they fail.

    They fail where they meet curvature that is not positive, or a residual that grows. Such a problem is solved over by
    :class:`MinRes` from the same start, in at most ``max_iterations`` further iterations. It ends at a residual of 1e-8 of the
    right-hand side (in float32 1e-5), or at ``tolerance``. The other problems keep what conjugate gradients gave.

    Example:
        >>> import torch
        >>> from metalearn.bilevel import CGOrMinRes
        >>> diagonal = torch.tensor([1.0, -4.0])
        >>> solution = CGOrMinRes(iterations=2).solve(lambda v: diagonal * v, torch.ones(2))
        >>> torch.allclose(solution.v, torch.tensor([1.0, -0.25]), atol=1e-5)
        True
    """

    def solve(self, product: Product, b: Tensor, v: Tensor | None = None) -> LinearSolution:
        product = damp(product, self.damping)
        faults = SetAside()
        gradients = replace(
            self.iteration(),
            iterates=partial(iterate_conjugate_gradients, faults=faults),
            growth=CG.growth,
            faults=faults,
        )
        first = gradients.run(product, b, v)
        if not faults.curvatures:
            return first
        curvature = faults.smallest()
        is_left = curvature < math.inf
        second = self._solve_over(product, b, v, is_left)
        return LinearSolution(
            torch.where(is_left.unsqueeze(-1), second.v, first.v),
            torch.where(is_left, second.residual, first.residual),
            first.iterations + second.iterations,
            curvature - self.damping,
        )

    def _solve_over(self, product: Product, b: Tensor, v: Tensor | None, chosen: Tensor) -> LinearSolution:
        length = vector_norm(b, dim=-1)
        goal = max(1e-8, rounding_of(b.dtype)) * length
        if self.tolerance is not None:
            goal = torch.full_like(length, self.tolerance)
        solution = minimise_residual(product, b, v, self.max_iterations, goal, chosen)
        if self.tolerance is not None and bool((solution.residual > goal)[chosen].any()):
            residual = solution.residual[chosen]
            raise tolerance_error(type(self).__name__, residual, solution.iterations, self.tolerance)
        return solution


_REPORTED: WeakSet[Any] = WeakSet()


def report_curvature(method: str, about: Any, solution: LinearSolution) -> None:
    """Say in the log, once for each ``about``, that problems were solved by :class:`MinRes`."""
    about = getattr(about, "__self__", about)
    try:
        if about in _REPORTED:
            return
        _REPORTED.add(about)
    except TypeError:  # it has no hash, or cannot be referred to: it is said each time
        pass
    assert solution.curvature is not None
    is_bent = solution.curvature < math.inf
    share = f" in {int(is_bent.sum())} of {is_bent.numel()} problems" if is_bent.ndim else ""
    worst = float(solution.residual[is_bent].max())
    log.warning(
        f"{method}: inner_loss has the curvature {float(solution.curvature.min()):.3g}{share}, where conjugate gradients "
        f"fail, so that H v = b was solved by minimal residuals, up to {worst:.2g}, in {solution.iterations} "
        "iterations; give a solver with damping= for a positive definite system, or use the estimator ITD"
    )
