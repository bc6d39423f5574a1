"""Solvers of ``H v = b`` by products with ``H = grad_yy g``, warm-started, for one problem or for ``B`` at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.linalg import vector_norm

from metalearn.bilevel.problem import Constants
from metalearn.bilevel.solvers.curvature import REMEDIES, Faults, Refusal, curvature_along
from metalearn.bilevel.solvers.growth import check_step_size
from metalearn.bilevel.solvers.iteration import Iteration, LinearSolution, Product, damp, rounding_level
from metalearn.bilevel.trees import dot, scale
from metalearn.checks import UNBOUNDED, check_number, check_whole
from metalearn.errors import ConfigError

__all__ = ["CG", "FixedPoint", "HeavyBallLinear", "LinearSolver", "Neumann", "iterate_conjugate_gradients"]


@dataclass(frozen=True, kw_only=True)
class LinearSolver:
    """An iteration for ``H v = b`` that knows its residual.

    A solver of your own gives :meth:`iterates`, or a :meth:`solve` where it has none.

    Attributes:
        iterations: how many iterations to take. Set this or ``tolerance``.
        tolerance: the residual's norm at which each problem stops.
        max_iterations: how many iterations may be taken to a tolerance before it is an error.
        damping: the number ``d`` that is added to ``H``: ``(H + d I) v = b``. Above the negative curvature the system
            is positive definite, and ``v`` is biased towards ``b/d``. 0 gives the exact solution.

    Example:
        >>> import torch
        >>> from metalearn.bilevel import CG
        >>> solution = CG(tolerance=1e-5).solve(lambda v: 2 * v, torch.tensor([4.0]))
        >>> solution.v, solution.iterations
        (tensor([2.]), 1)
    """

    iterations: int | None = None
    tolerance: float | None = None
    max_iterations: int = 1000
    damping: float = 0.0

    growth: ClassVar[float] = 1.01
    """How much the residual's norm may grow in a run on a positive definite ``H``."""

    stable: ClassVar[str] = "it must be positive: add l2 regularisation to inner_loss"
    """What a curvature at which the residual grows must be, and what to do."""

    def __post_init__(self) -> None:
        name = type(self).__name__
        if (self.iterations is None) == (self.tolerance is None):
            raise ConfigError(
                f"{name}(iterations={self.iterations}, tolerance={self.tolerance}), but exactly one of them must be "
                "given; drop one"
            )
        if self.iterations is not None:
            check_whole("iterations", self.iterations, 0, UNBOUNDED, "use 10", owner=name, loose=True)
        check_whole("max_iterations", self.max_iterations, 1, UNBOUNDED, "use 1000", owner=name, loose=True)
        check_number("damping", self.damping, "use 0.0", least=0, owner=name, loose=True)
        if self.tolerance is not None:
            check_number("tolerance", self.tolerance, "use 1e-6", above=0, finite=False, owner=name, loose=True)

    def iterates(self, product: Product, b: Tensor, v: Tensor, r: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield ``v_k`` and ``b - H v_k`` for ``k = 1, 2, ...`` from ``v_0`` and its residual.

        It ends where no problem can be improved.
        """
        raise NotImplementedError(f"{type(self).__name__} must define iterates, or solve without them")

    def check(self, constants: Constants) -> None:
        """Raise a ConfigError if a step size is outside the stable range of a known ``L``."""

    def solve(self, product: Product, b: Tensor, v: Tensor | None = None) -> LinearSolution:
        """Solve ``H v = b`` from ``v``, or from 0, where the first product is not needed.

        Raises:
            BilevelError: negative curvature, a residual that grows, or a tolerance that was not reached.
        """
        return self.iteration().run(damp(product, self.damping), b, v)

    def refusal(self) -> Faults:
        """Make what turns negative curvature, and a residual that grows, into an error."""
        return Refusal(type(self).__name__, self.damping, self.stable)

    def iteration(self) -> Iteration:
        """Make the run of this solver."""
        return Iteration(
            name=type(self).__name__, iterates=self.iterates, iterations=self.iterations, tolerance=self.tolerance,
            max_iterations=self.max_iterations, growth=self.growth, faults=self.refusal(),
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class CG(LinearSolver):
    """Conjugate gradients (Hestenes and Stiefel 1952), for a positive definite ``H``.

    They are exact after as many iterations as ``H`` has distinct eigenvalues, and
    ``|v_k - v*|_H <= 2 ((sqrt(c) - 1)/(sqrt(c) + 1))^k |v_0 - v*|_H`` with ``c = L/mu``.

    Raises, from :meth:`solve`:
        BilevelError: ``p' H p <= 0`` for a search direction.

    Example:
        >>> import torch
        >>> from metalearn.bilevel import CG
        >>> diagonal, b = torch.tensor([1.0, 4.0]), torch.tensor([2.0, 4.0])
        >>> solution = CG(iterations=2).solve(lambda v: diagonal * v, b)
        >>> torch.allclose(solution.v, torch.tensor([2.0, 1.0]))
        True
    """

    growth: ClassVar[float] = 1e3  # only the error is monotone
    stable: ClassVar[str] = f"it must be positive: {REMEDIES}"

    def iterates(self, product: Product, b: Tensor, v: Tensor, r: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        return iterate_conjugate_gradients(product, b, v, r, self.refusal())


@dataclass(frozen=True, kw_only=True)
class FixedPoint(LinearSolver):
    """``v <- v - a (H v - b)`` (Grazzi et al. 2020); from 0, ``v_K = a sum_{q<K} (I - a H)^q b``.

    Attributes:
        step_size: the step size ``a``, below ``2/L``.

    Example:
        >>> import torch
        >>> from metalearn.bilevel import FixedPoint
        >>> FixedPoint(step_size=0.25, iterations=2).solve(lambda v: 2 * v, torch.tensor([4.0])).v
        tensor([1.5000])
    """

    step_size: float

    stable: ClassVar[str] = (
        "it must be positive and below 2/step_size: lower the step size, or add l2 regularisation to inner_loss"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_positive_step(self, self.step_size)

    def check(self, constants: Constants) -> None:
        if constants.L is not None:
            smooth = constants.L + self.damping
            check_step_size(f"{type(self).__name__}.step_size", self.step_size, 2 / smooth, smooth)

    def iterates(self, product: Product, b: Tensor, v: Tensor, r: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            v = v + self.step_size * r
            r = r - self.step_size * product(r)  # b - H v, by linearity
            yield v, r

    def iteration(self) -> Iteration:
        return replace(super().iteration(), check_last=self._check_curvature)

    def _check_curvature(self, b: Tensor, before: Tensor, r: Tensor) -> None:
        """Raise if the last two residuals tell that ``H`` has negative curvature."""
        # r = before - a H before, and repeated steps turn the residual to the smallest eigenvalue
        curvature = curvature_along(before, before - r) / self.step_size
        eps = torch.finfo(b.dtype).eps
        is_negative = (curvature < -100 * eps / self.step_size) & (vector_norm(before, dim=-1) > rounding_level(b, 0.5))
        if bool(is_negative.any()):
            self.refusal().meet_curvature(curvature, is_negative)


@dataclass(frozen=True, kw_only=True)
class Neumann(FixedPoint):
    """``v = a sum_{q=0}^{K} (I - a H)^q b`` with ``K = iterations`` (Lorraine et al. 2020).

    It is the fixed-point iteration of ``K + 1`` steps; a warm start adds the series of its residual.

    Example:
        >>> import torch
        >>> from metalearn.bilevel import Neumann
        >>> Neumann(step_size=0.25, iterations=1).solve(lambda v: 2 * v, torch.tensor([4.0])).v
        tensor([1.5000])
    """

    def solve(self, product: Product, b: Tensor, v: Tensor | None = None) -> LinearSolution:
        if self.iterations is None:
            return super().solve(product, b, v)
        longer = replace(self.iteration(), iterations=self.iterations + 1)
        return longer.run(damp(product, self.damping), b, v)._replace(iterations=self.iterations)


@dataclass(frozen=True, kw_only=True)
class HeavyBallLinear(LinearSolver):
    """``v <- v - a (H v - b) + m (v - v_before)`` (Polyak 1964), the dual iteration of AccBiO.

    Two residuals do not tell the curvature here, since a move has the momentum of earlier ones.

    Attributes:
        step_size: the step size ``a``, below ``2 (1 + m)/L``.
        momentum: the momentum ``m``, at least 0 and below 1.

    Example:
        >>> import torch
        >>> from metalearn.bilevel import HeavyBallLinear
        >>> solver = HeavyBallLinear(step_size=0.25, momentum=0.5, iterations=2)
        >>> solver.solve(lambda v: 2 * v, torch.tensor([4.0])).v
        tensor([2.])
    """

    step_size: float
    momentum: float

    growth: ClassVar[float] = 1e3  # momentum has transients
    stable: ClassVar[str] = (
        "it must be positive and below 2 (1 + momentum)/step_size: lower the step size, or add l2 regularisation to inner_loss"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_positive_step(self, self.step_size)
        check_number("momentum", self.momentum, "use 0.9", least=0, below=1, loose=True)

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


def iterate_conjugate_gradients(
    product: Product, b: Tensor, v: Tensor, r: Tensor, faults: Faults
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the iterates of :class:`CG`, and leave to ``faults`` what is done about negative curvature."""
    # a residual at the level of rounding has no direction: such a problem rests
    floor = rounding_level(b) ** 2
    p, square = r, dot(r, r)
    while True:
        along = product(p)
        bend, moves = dot(p, along), ~(square <= floor)  # what is not a number moves, and is seen
        is_bent = (bend <= 0) & moves
        if bool(is_bent.any()):
            faults.meet_curvature(bend / dot(p, p), is_bent)
        moves = moves & ~faults.set_aside(bend)
        if not bool(moves.any()):
            return
        step = torch.where(moves, square / torch.where(moves, bend, 1.0), 0.0)
        v, r = v + scale(step, p), r - scale(step, along)
        before, square = square, dot(r, r)
        p = r + scale(torch.where(moves, square / torch.where(moves, before, 1.0), 0.0), p)
        yield v, r


def _check_positive_step(solver: LinearSolver, step_size: float) -> None:
    check_number("step_size", step_size, "use 1/L", above=0, owner=type(solver).__name__, loose=True)
