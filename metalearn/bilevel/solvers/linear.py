"""Solvers of ``H v = b`` by products with ``H = grad_yy g``, warm-started, for one problem or for ``B`` at once."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from metalearn.bilevel.checks import check_number, check_whole
from metalearn.bilevel.problem import Constants
from metalearn.bilevel.solvers.inner import check_step_size
from metalearn.bilevel.trees import dot, norm, scale
from metalearn.errors import BilevelError, ConfigError

__all__ = [
    "CG",
    "FixedPoint",
    "HeavyBallLinear",
    "LinearSolution",
    "LinearSolver",
    "Neumann",
    "Product",
    "bent",
    "curvature_along",
    "damped",
]

FAR = 1e6
"""Growth of a residual beyond which the run says no more."""

REMEDIES = (
    "add l2 regularisation, solve the inner problem further, give the solver damping= above the negative curvature, or use "
    "CGOrMinRes, or the estimator ITD, which needs no curvature"
)
"""What helps where the inner loss is not strongly convex."""

Product = Callable[[Tensor], Tensor]
"""``v -> H v``, ``[D]`` or ``[B, D]``."""


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


@dataclass(frozen=True, kw_only=True)
class LinearSolver(ABC):
    """An iteration for ``H v = b`` that knows its residual.

    Attributes:
        iterations: their number, or
        tolerance: the residual's norm at which each problem stops.
        max_iterations: with a tolerance, after how many iterations it is an error.
        damping: ``d``, is added to ``H``: ``(H + d I) v = b``. Above the negative curvature the system is positive definite, and
            ``v`` is biased towards ``b/d``; 0 for the exact solution.
    """

    iterations: int | None = None
    tolerance: float | None = None
    max_iterations: int = 1000
    damping: float = 0.0

    growth: ClassVar[float] = 1.01
    """How much the residual's norm may grow in a run on a positive definite ``H``."""

    stable: ClassVar[str] = "it must be positive: add l2 regularisation to inner_loss"
    """What a curvature at which the residual grows must be, and what to do."""

    looks_back: ClassVar[bool] = False
    """Whether the last two residuals tell the curvature, and the last but one is kept."""

    def __post_init__(self) -> None:
        name = type(self).__name__
        if (self.iterations is None) == (self.tolerance is None):
            raise ConfigError(
                f"{name}(iterations={self.iterations}, tolerance={self.tolerance}), but exactly one of them must be "
                "given; drop one"
            )
        if self.iterations is not None:
            check_whole(f"{name}(iterations", self.iterations, 0, "use 10")
        check_whole(f"{name}(max_iterations", self.max_iterations, 1, "use 1000")
        check_number(f"{name}(damping", self.damping, "use 0.0")
        if self.tolerance is not None:
            check_number(f"{name}(tolerance", self.tolerance, "use 1e-6")
        if self.tolerance is not None and not self.tolerance > 0:
            raise ConfigError(f"{name}(tolerance={self.tolerance}), but it must be above 0; use 1e-6")
        if not 0 <= self.damping < math.inf:
            raise ConfigError(f"{name}(damping={self.damping}), but it must be at least 0 and finite; use 0.0")

    @abstractmethod
    def iterates(self, product: Product, b: Tensor, v: Tensor, r: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield ``v_k`` and ``b - H v_k`` for ``k = 1, 2, ...`` from ``v_0`` and its residual, and end where no problem can be
        improved."""

    def check(self, constants: Constants) -> None:  # noqa: B027  # most solvers have no step size
        """Raise a ConfigError if a step size is outside the stable range of a known ``L``."""

    def solve(self, product: Product, b: Tensor, v: Tensor | None = None) -> LinearSolution:
        """Solve ``H v = b`` from ``v``, or from 0, where the first product is not needed.

        Raises:
            BilevelError: negative curvature, a residual that grows, or a tolerance that was not reached.
        """
        product = damped(product, self.damping)
        if v is None:
            v, r = torch.zeros_like(b), b
        else:
            r = b - product(v)
        start = v, r
        answer, residual = v, norm(r)
        first, count = residual, 0
        if self.iterations == 0:
            return LinearSolution(answer, residual, 0)
        tolerance = self.tolerance if self.tolerance is not None else -1.0
        done = residual <= tolerance
        if bool(done.all()):
            return LinearSolution(answer, residual, 0)
        limit = self.iterations if self.iterations is not None else self.max_iterations
        before, iterates = r, self.iterates(product, b, v, r)
        del v  # no vector is held that is not needed: each is as long as y
        for count, (found, after) in enumerate(iterates, 1):
            before, r = r if self.looks_back else after, after
            if self.tolerance is None:
                answer = found
            else:
                # each problem keeps the first solution that is good enough, whatever the others do
                answer = torch.where(done.unsqueeze(-1), answer, found)
                residual = torch.where(done, residual, norm(r))
                done = (residual <= tolerance) | self.given_up(residual)
                if bool(done.all()):
                    break
            if count == limit:
                break
        if self.tolerance is None:
            residual = norm(r)
        self._check_curvature_of_last(b, before, r)
        self._check_growth(product, b, first, r, start)
        # what is not finite is for the caller to say, who knows the term and the step
        if self.tolerance is not None and not bool((done | ~residual.isfinite() | self.given_up(residual)).all()):
            raise self.not_reached(residual, limit)
        return LinearSolution(answer, residual, count)

    def given_up(self, residual: Tensor) -> Tensor:
        """The problems that are left for another solver to do, like ``residual``."""
        return torch.zeros_like(residual, dtype=torch.bool)

    def not_reached(self, residual: Tensor, iterations: int) -> BilevelError:
        """What to raise where the tolerance was not reached."""
        return BilevelError(
            f"{type(self).__name__} reached |H v - b| = {float(residual.max()):.3g} in {iterations} iterations, but "
            f"tolerance={self.tolerance:g} was asked for; raise max_iterations or loosen the tolerance"
        )

    def _check_curvature_of_last(self, b: Tensor, before: Tensor, r: Tensor) -> None:  # noqa: B027  # few solvers can
        """Raise if the last two residuals tell that ``H`` has negative curvature."""

    def _check_growth(
        self, product: Product, b: Tensor, first: Tensor, r: Tensor, start: tuple[Tensor, Tensor]
    ) -> None:
        now = norm(r)
        floor = torch.finfo(b.dtype).eps ** 0.5 * norm(b)  # below it growth is rounding
        grown = ~((now <= self.growth * first) | (now <= floor))
        if not bool(grown.any()):
            return
        if bool((now[grown] > FAR * first[grown]).any() | ~now.isfinite().all()):
            # again, up to where the numbers still say something
            for _, r in self.iterates(product, b, *start):
                now = norm(r)
                grown = ~((now <= FAR * first) | (now <= floor))
                if bool(grown.any()):
                    break
            if not bool(now.isfinite().all()):
                return  # for the caller, who knows the term and the step
        self._meet_growth(first, now, curvature_along(r, product(r)), grown)

    def _meet_growth(self, first: Tensor, now: Tensor, curvature: Tensor, grown: Tensor) -> None:
        raise BilevelError(
            f"the residual |H v - b| of {type(self).__name__} grew from {_worst(first, grown):.3g} to "
            f"{_worst(now, grown):.3g}, where the inner loss has the curvature {_worst(curvature, grown) - self.damping:.3g}; "
            f"{self.stable}"
        )


@dataclass(frozen=True, kw_only=True)
class CG(LinearSolver):
    """Conjugate gradients (Hestenes and Stiefel 1952): exact after as many iterations as ``H`` has distinct eigenvalues, and
    ``|v_k - v*|_H <= 2 ((sqrt(k) - 1)/(sqrt(k) + 1))^k |v_0 - v*|_H`` with ``k = L/mu``.

    Raises, from :meth:`solve`:
        BilevelError: ``p' H p <= 0`` for a search direction.
    """

    growth: ClassVar[float] = 1e3  # only the error is monotone
    stable: ClassVar[str] = f"it must be positive: {REMEDIES}"

    def iterates(self, product: Product, b: Tensor, v: Tensor, r: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        # a residual at the level of rounding has no direction: such a problem rests
        floor = (torch.finfo(b.dtype).eps * norm(b)) ** 2
        p, square = r, dot(r, r)
        while True:
            along = product(p)
            bend, moves = dot(p, along), ~(square <= floor)  # what is not a number moves, and is seen
            wrong = (bend <= 0) & moves
            if bool(wrong.any()):
                self._meet_curvature(bend / dot(p, p), wrong)
            moves = moves & ~self.given_up(bend)
            if not bool(moves.any()):
                return
            step = torch.where(moves, square / torch.where(moves, bend, 1.0), 0.0)
            v, r = v + scale(step, p), r - scale(step, along)
            before, square = square, dot(r, r)
            p = r + scale(torch.where(moves, square / torch.where(moves, before, 1.0), 0.0), p)
            yield v, r

    def _meet_curvature(self, curvature: Tensor, wrong: Tensor) -> None:
        raise bent("CG", _worst(curvature, wrong), self.damping)


@dataclass(frozen=True, kw_only=True)
class FixedPoint(LinearSolver):
    """``v <- v - a (H v - b)`` (Grazzi et al. 2020); from 0, ``v_K = a sum_{q<K} (I - a H)^q b``.

    Attributes:
        step_size: ``a``, below ``2/L``.
    """

    step_size: float

    stable: ClassVar[str] = (
        "it must be positive and below 2/step_size: lower the step size, or add l2 regularisation to inner_loss"
    )

    looks_back: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(f"{type(self).__name__}(step_size", self.step_size, "use 1/L")
        if not 0 < self.step_size < math.inf:
            raise ConfigError(
                f"{type(self).__name__}(step_size={self.step_size}), but it must be above 0 and finite; use 1/L"
            )

    def check(self, constants: Constants) -> None:
        if constants.L is not None:
            smooth = constants.L + self.damping
            check_step_size(f"{type(self).__name__}.step_size", self.step_size, 2 / smooth, smooth)

    def iterates(self, product: Product, b: Tensor, v: Tensor, r: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            v = v + self.step_size * r
            r = r - self.step_size * product(r)  # b - H v, by linearity
            yield v, r

    def _check_curvature_of_last(self, b: Tensor, before: Tensor, r: Tensor) -> None:
        # r = before - a H before, and repeated steps turn the residual to the smallest eigenvalue
        curvature = curvature_along(before, before - r) / self.step_size
        eps = torch.finfo(b.dtype).eps
        wrong = (curvature < -100 * eps / self.step_size) & (norm(before) > eps**0.5 * norm(b))
        if bool(wrong.any()):
            raise bent(type(self).__name__, _worst(curvature, wrong), self.damping)


@dataclass(frozen=True, kw_only=True)
class Neumann(FixedPoint):
    """``v = a sum_{q=0}^{K} (I - a H)^q b`` with ``K = iterations`` (Lorraine et al. 2020), the fixed-point iteration of
    ``K + 1`` steps; a warm start adds the series of its residual."""

    def solve(self, product: Product, b: Tensor, v: Tensor | None = None) -> LinearSolution:
        if self.iterations is None:
            return super().solve(product, b, v)
        longer = replace(self, iterations=self.iterations + 1)
        return super(Neumann, longer).solve(product, b, v)._replace(iterations=self.iterations)


@dataclass(frozen=True, kw_only=True)
class HeavyBallLinear(FixedPoint):
    """``v <- v - a (H v - b) + m (v - v_before)`` (Polyak 1964), the dual iteration of AccBiO.

    Attributes:
        momentum: ``m``, at least 0 and below 1.
    """

    momentum: float

    growth: ClassVar[float] = 1e3  # momentum has transients
    stable: ClassVar[str] = (
        "it must be positive and below 2 (1 + momentum)/step_size: lower the step size, or add l2 regularisation to inner_loss"
    )

    looks_back: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("momentum", self.momentum, "use 0.9")
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"momentum is {self.momentum}, but it must be at least 0 and below 1; use 0.9")

    def check(self, constants: Constants) -> None:
        if constants.L is not None:
            smooth = constants.L + self.damping
            check_step_size("HeavyBallLinear.step_size", self.step_size, 2 * (1 + self.momentum) / smooth, smooth)

    def iterates(self, product: Product, b: Tensor, v: Tensor, r: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        move = torch.zeros_like(v)
        while True:
            move = self.step_size * r + self.momentum * move
            v, r = v + move, r - product(move)
            yield v, r

    def _check_curvature_of_last(self, b: Tensor, before: Tensor, r: Tensor) -> None:
        """Two residuals do not tell: the move has the momentum of earlier ones."""


def damped(product: Product, damping: float) -> Product:
    """``v -> H v + damping v``; the product itself without damping."""
    return product if damping == 0 else lambda v: product(v) + damping * v


def bent(method: str, curvature: float, damping: float = 0.0) -> BilevelError:
    """What to raise where a method that needs a positive definite ``H + damping I`` met this curvature of it."""
    place = f"{curvature - damping:.3g}" + (f", with damping={damping:g} {curvature:.3g}," if damping else "")
    return BilevelError(
        f"{method} met the curvature {place} in inner_loss, but it must be strongly convex in y; {REMEDIES}"
    )


def curvature_along(v: Tensor, along: Tensor) -> Tensor:
    """``v'H v / v'v`` for ``along = H v``, ``[]`` or ``[B]``; squares of long vectors do not overflow."""
    size = v.abs().amax(-1, keepdim=True)
    size = torch.where(size > 0, size, 1.0)
    return dot(v / size, along / size) / dot(v / size, v / size)


def _worst(values: Tensor, where: Tensor) -> float:
    """The smallest of the values that are at fault."""
    return float(values[where].min())
