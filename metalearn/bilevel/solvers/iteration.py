"""The run of an iteration for ``H v = b``: a number of iterations or to a tolerance, and then what went wrong in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor
from torch.linalg import vector_norm

from metalearn.bilevel.solvers.curvature import Faults, curvature_along
from metalearn.errors import BilevelError

__all__ = ["Iteration", "LinearSolution", "Product", "damp", "rounding_level", "tolerance_error"]

FAR = 1e6
"""Growth of a residual beyond which rounding hides the curvature."""

Product = Callable[[Tensor], Tensor]
"""``v -> H v``, ``[D]`` or ``[B, D]``."""

Iterates = Callable[[Product, Tensor, Tensor, Tensor], Iterator[tuple[Tensor, Tensor]]]
"""``(product, b, v_0, b - H v_0)`` to ``v_k`` and ``b - H v_k`` for ``k = 1, 2, ...``."""


class LinearSolution(NamedTuple):
    """Where a linear solver has ended.

    Attributes:
        v: ``[D]`` or ``[B, D]``.
        residual: ``|H v - b|``, ``[]`` or ``[B]``; with damping ``|(H + damping I) v - b|``.
        iterations: their number.
        curvature: of the problems that conjugate gradients could not solve and another method did, ``[]`` or ``[B]``; infinite
            for the others, ``None`` where there are none.
    """

    v: Tensor
    residual: Tensor
    iterations: int
    curvature: Tensor | None = None


class _Iterate(NamedTuple):
    """Where an iteration stands: ``v``, its residual ``b - H v``, and an earlier residual."""

    v: Tensor
    residual: Tensor
    before: Tensor
    number: int


@dataclass(frozen=True, kw_only=True)
class Iteration:
    """All that a run needs to know of a linear solver.

    Attributes:
        name: the solver's, for messages.
        iterates: the method itself.
        iterations: the number of iterations; this or ``tolerance`` is there.
        tolerance: the residual's length at which each problem stops.
        max_iterations: with a tolerance, the number of iterations after which it is an error.
        growth: how much a residual may grow.
        faults: what is done about negative curvature, and about a residual that grows more.
        check_last: gets ``b`` and the last two residuals; where it is ``None``, only the last one is kept.
    """

    name: str
    iterates: Iterates
    iterations: int | None
    tolerance: float | None
    max_iterations: int
    growth: float
    faults: Faults
    check_last: Callable[[Tensor, Tensor, Tensor], None] | None = None

    def run(self, product: Product, b: Tensor, v: Tensor | None = None) -> LinearSolution:
        """Solve ``H v = b`` from ``v``, or from 0, where the first product is not needed.

        Raises:
            BilevelError: what ``faults`` and ``check_last`` raise, or a tolerance that was not reached.
        """
        start = _start(product, b, v)
        del v  # no vector is held that is not needed: each is as long as y
        first = vector_norm(start.residual, dim=-1)
        if self.iterations == 0 or (self.tolerance is not None and bool((first <= self.tolerance).all())):
            return LinearSolution(start.v, first, 0)
        if self.tolerance is not None:
            return self._approach(product, b, start, first, self.tolerance)
        end = start
        for end in self._advance(product, b, start):  # noqa: B007  # the last one is what counts
            pass
        last = vector_norm(end.residual, dim=-1)
        self._diagnose(product, b, start, end, first, last)
        return LinearSolution(end.v, last, end.number)

    def _advance(self, product: Product, b: Tensor, start: _Iterate) -> Iterator[_Iterate]:
        """Yield where the iteration stands after each step, up to the last that is allowed."""
        limit = self.max_iterations if self.iterations is None else self.iterations
        before = start.residual
        steps = islice(self.iterates(product, b, start.v, start.residual), limit)
        for number, (v, residual) in enumerate(steps, 1):
            yield _Iterate(v, residual, before, number)
            if self.check_last is not None:
                before = residual

    def _approach(
        self, product: Product, b: Tensor, start: _Iterate, first: Tensor, tolerance: float
    ) -> LinearSolution:
        """Iterate until each problem has a residual that is short enough."""
        answer, length, last, end = start.v, first, first, start
        is_done = length <= tolerance
        for end in self._advance(product, b, start):
            # each problem keeps the first solution that is good enough, whatever the others do
            answer = torch.where(is_done.unsqueeze(-1), answer, end.v)
            last = vector_norm(end.residual, dim=-1)
            length = torch.where(is_done, length, last)
            is_done = (length <= tolerance) | self.faults.set_aside(length)
            if bool(is_done.all()):
                break
        self._diagnose(product, b, start, end, first, last)
        # what is not finite is reported by the caller, who knows the term and the step
        if not bool((is_done | ~length.isfinite() | self.faults.set_aside(length)).all()):
            raise tolerance_error(self.name, length, self.max_iterations, tolerance)
        return LinearSolution(answer, length, end.number)

    def _diagnose(
        self, product: Product, b: Tensor, start: _Iterate, end: _Iterate, first: Tensor, last: Tensor
    ) -> None:
        """Report the curvature where the last residuals, of these lengths, tell that ``H`` is not positive definite."""
        if self.check_last is not None:
            self.check_last(b, end.before, end.residual)
        residual = end.residual
        floor = rounding_level(b, 0.5)  # below it growth is rounding
        has_grown = _exceeds(last, self.growth * first, floor)
        if not bool(has_grown.any()):
            return
        if bool(_exceeds(last, FAR * first, floor).any()):
            residual = self._repeat_until_far(product, b, start, floor)
            last = vector_norm(residual, dim=-1)
            has_grown = _exceeds(last, FAR * first, floor)
        if bool(last.isfinite().all()):  # else the caller reports it, who knows the term and the step
            self.faults.meet_growth(first, last, curvature_along(residual, product(residual)), has_grown)

    def _repeat_until_far(self, product: Product, b: Tensor, start: _Iterate, floor: Tensor) -> Tensor:
        """Run again, up to where the residual still tells the curvature."""
        limit, residual = FAR * vector_norm(start.residual, dim=-1), start.residual
        for _, residual in self.iterates(product, b, start.v, start.residual):
            if bool(_exceeds(vector_norm(residual, dim=-1), limit, floor).any()):
                break
        return residual


def damp(product: Product, damping: float) -> Product:
    """Return ``v -> H v + damping v``; the product itself without damping."""
    return product if damping == 0 else lambda v: product(v) + damping * v


def rounding_level(b: Tensor, power: float = 1.0) -> Tensor:
    """Return the length below which a residual of ``H v = b`` is rounding: ``eps^power |b|``.

    It is at least a length whose square does not underflow. Where ``b`` is 0, warm starts shrink to such lengths.
    """
    limits = torch.finfo(b.dtype)
    return (limits.eps**power * vector_norm(b, dim=-1)).clamp(min=limits.tiny**0.5)


def tolerance_error(name: str, residual: Tensor, iterations: int, tolerance: float) -> BilevelError:
    """Make the error of a solver that did not reach its tolerance."""
    return BilevelError(
        f"{name} reached |H v - b| = {float(residual.max()):.3g} in {iterations} iterations, but "
        f"tolerance={tolerance:g} was asked for; raise max_iterations or loosen the tolerance"
    )


def _start(product: Product, b: Tensor, v: Tensor | None) -> _Iterate:
    residual = b if v is None else b - product(v)
    return _Iterate(torch.zeros_like(b) if v is None else v, residual, residual, 0)


def _exceeds(length: Tensor, limit: Tensor, floor: Tensor) -> Tensor:
    """Return which lengths are above both bounds, or are not a number."""
    return ~((length <= limit) | (length <= floor))
