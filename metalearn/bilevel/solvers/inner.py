"""Solvers of the inner problem, by a number of steps or to a tolerance: ``y* = argmin_y g(x, y)``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.linalg import vector_norm

from metalearn.bilevel.problem import Constants
from metalearn.bilevel.solvers.growth import (
    check_growth,
    check_step_size,
    describe_place,
    make_divergence,
    measure_growth,
)
from metalearn.bilevel.trees import all_finite
from metalearn.checks import UNBOUNDED, check_number, check_whole
from metalearn.errors import BilevelError, ConfigError

__all__ = ["Gradient", "GradientDescent", "HeavyBall", "InnerSolution", "InnerSolver", "Nesterov"]

Gradient = Callable[[Tensor, int], Tensor]
"""``(y, step) -> grad_y g(x, y)``, where the step chooses the batch."""


class InnerSolution(NamedTuple):
    """Where an inner solver has ended.

    Attributes:
        y: ``[D]`` or ``[B, D]``.
        steps: gradients that were taken.
        residual: ``|grad_y g(x, y)|``, ``[]`` or ``[B]``; ``None`` where a number of steps was given, since it would cost a
            further gradient.
        first: that at the start.
        last: that where the last gradient was taken.
    """

    y: Tensor
    steps: int
    residual: Tensor | None
    first: Tensor | None
    last: Tensor | None = None

    @property
    def growth(self) -> Tensor | None:
        """``last/first``, where both are known."""
        return None if self.first is None or self.last is None else measure_growth(self.first, self.last)


@dataclass(frozen=True, kw_only=True)
class InnerSolver(ABC):
    """A first-order method for the inner problem.

    Attributes:
        step_size: the size of every step.
        steps: how many steps to take. Set this or ``tolerance``.
        tolerance: the norm of the inner gradient at which each problem stops.
        max_steps: how many steps may be taken to a tolerance before it is an error.

    Example:
        >>> import torch
        >>> from metalearn.bilevel import GradientDescent
        >>> solver = GradientDescent(step_size=0.5, tolerance=0.6)
        >>> solution = solver.solve(lambda y, step: y - 4, torch.zeros(1))
        >>> solution.y, solution.residual
        (tensor([3.5000]), tensor(0.5000))
    """

    step_size: float
    steps: int | None = None
    tolerance: float | None = None
    max_steps: int = 10_000

    def __post_init__(self) -> None:
        name = type(self).__name__
        check_number("step_size", self.step_size, "use 1/L", above=0, owner=name, loose=True)
        if (self.steps is None) == (self.tolerance is None):
            raise ConfigError(
                f"{name}(steps={self.steps}, tolerance={self.tolerance}), but exactly one of them must be given; "
                "drop one"
            )
        if self.steps is not None:
            check_whole("steps", self.steps, 0, UNBOUNDED, "use 10", owner=name, loose=True)
            object.__setattr__(self, "steps", int(self.steps))  # range(3.0) would raise
        check_whole("max_steps", self.max_steps, 1, UNBOUNDED, "use 10000", owner=name, loose=True)
        object.__setattr__(self, "max_steps", int(self.max_steps))
        if self.tolerance is not None:
            check_number("tolerance", self.tolerance, "use 1e-6", above=0, finite=False, owner=name, loose=True)

    @abstractmethod
    def largest_step(self, L: float) -> float:
        """The step size from which on the method diverges on an ``L``-smooth quadratic."""

    @abstractmethod
    def point(self, y: Tensor, last: Tensor) -> Tensor:
        """Where the gradient is taken, given this iterate and the one before."""

    @abstractmethod
    def move(self, point: Tensor, y: Tensor, last: Tensor, gradient: Tensor) -> Tensor:
        """The next iterate."""

    def check(self, constants: Constants) -> None:
        """Raise a ConfigError if the step size is outside the stable range of a known ``L``."""
        if constants.L is not None:
            check_step_size(
                f"{type(self).__name__}.step_size", self.step_size, self.largest_step(constants.L), constants.L
            )

    def solve(self, gradient: Gradient, y: Tensor, outer: int | None = None) -> InnerSolution:
        """Run without a graph.

        Args:
            gradient: of the inner loss.
            y: where to start.
            outer: the number of the outer step, for messages.

        Raises:
            BilevelError: the tolerance was not reached.
            DivergenceError: an iterate is not finite, or the inner gradient has grown a thousandfold.
        """
        if self.tolerance is not None:
            return self._until(gradient, y.detach(), self.tolerance, outer)
        assert self.steps is not None
        first = size = None
        current = last = start = y.detach()
        for step in range(self.steps):
            point = self.point(current, last)
            slope = gradient(point, step)
            if step in (0, self.steps - 1):
                size = vector_norm(slope, dim=-1)
                first = size if first is None else first
            current, last = self.move(point, current, last, slope), current
        if not all_finite(current):
            self._locate(gradient, start, outer)
        return InnerSolution(current, self.steps, None, first, size)

    def unroll(self, gradient: Gradient, y: Tensor, last: Tensor, first: int, count: int) -> tuple[Tensor, Tensor]:
        """``count`` steps from number ``first`` on, with the graph that ``gradient`` makes: the last two iterates."""
        for step in range(first, first + count):
            point = self.point(y, last)
            y, last = self.move(point, y, last, gradient(point, step)), y
        return y, last

    def _until(self, gradient: Gradient, y: Tensor, tolerance: float, outer: int | None) -> InnerSolution:
        """Each problem keeps the first point at which its gradient is short enough, whatever the others do."""
        last = answer = y
        residual = first = done = None
        for step in range(self.max_steps + 1):
            point = self.point(y, last)
            slope = gradient(point, step)
            size = vector_norm(slope, dim=-1)
            if first is None or done is None or residual is None:
                first, residual, done = size, size, torch.zeros_like(size, dtype=torch.bool)
            answer = torch.where(done.unsqueeze(-1), answer, point)
            residual = torch.where(done, residual, size)
            done = residual <= tolerance
            if bool(done.all()):
                return InnerSolution(answer, step + 1, residual, first, residual)
            check_growth(first, residual, step, self.step_size, outer)
            y, last = self.move(point, y, last, slope), y
        assert residual is not None
        raise BilevelError(
            f"{type(self).__name__} reached |grad_y g| = {float(residual.max()):.3g} in {self.max_steps} steps"
            f"{describe_place(outer)}, but tolerance={tolerance:g} was asked for; raise max_steps, loosen the tolerance, or "
            "check that inner_loss is strongly convex"
        )

    def _locate(self, gradient: Gradient, y: Tensor, outer: int | None) -> None:
        """Run again, for the step at which the first entry was not finite."""
        assert self.steps is not None
        last = y
        for step in range(self.steps):
            point = self.point(y, last)
            slope = gradient(point, step)
            term = "grad_y g" if not bool(slope.isfinite().all()) else "y"
            y, last = self.move(point, y, last, slope), y
            if not bool(y.isfinite().all()):
                raise make_divergence(term, step, self.step_size, outer)


@dataclass(frozen=True, kw_only=True)
class GradientDescent(InnerSolver):
    """``y <- y - a grad_y g(x, y)``; contracts by ``1 - mu/L`` with ``a = 1/L``.

    Example:
        >>> import torch
        >>> from metalearn.bilevel import GradientDescent
        >>> GradientDescent(step_size=0.5, steps=2).solve(lambda y, step: y - 4, torch.zeros(1)).y
        tensor([3.])
    """

    def largest_step(self, L: float) -> float:
        return 2 / L

    def point(self, y: Tensor, last: Tensor) -> Tensor:
        return y

    def move(self, point: Tensor, y: Tensor, last: Tensor, gradient: Tensor) -> Tensor:
        return y - self.step_size * gradient


@dataclass(frozen=True, kw_only=True)
class HeavyBall(InnerSolver):
    """``y <- y - a grad_y g(x, y) + m (y - y_before)`` (Polyak 1964).

    Attributes:
        momentum: ``m``, at least 0 and below 1.

    Example:
        >>> import torch
        >>> from metalearn.bilevel import HeavyBall
        >>> solver = HeavyBall(step_size=0.5, momentum=0.5, steps=2)
        >>> solver.solve(lambda y, step: y - 4, torch.zeros(1)).y
        tensor([4.])
    """

    momentum: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("momentum", self.momentum, "use 0.9", least=0, below=1, loose=True)

    def largest_step(self, L: float) -> float:
        return 2 * (1 + self.momentum) / L

    def point(self, y: Tensor, last: Tensor) -> Tensor:
        return y

    def move(self, point: Tensor, y: Tensor, last: Tensor, gradient: Tensor) -> Tensor:
        return y - self.step_size * gradient + self.momentum * (y - last)


@dataclass(frozen=True, kw_only=True)
class Nesterov(InnerSolver):
    """``z = y + m (y - y_before); y <- z - a grad_y g(x, z)`` (Nesterov 2004, 2.2.22).

    With ``a = 1/L`` and ``m = (sqrt(k) - 1)/(sqrt(k) + 1)``, ``k = L/mu``, it contracts by ``sqrt(1 - 1/sqrt(k))``.

    Attributes:
        momentum: ``m``, at least 0 and below 1.

    Example:
        >>> import torch
        >>> from metalearn.bilevel import Nesterov
        >>> solver = Nesterov(step_size=0.5, momentum=0.5, steps=2)
        >>> solver.solve(lambda y, step: y - 4, torch.zeros(1)).y
        tensor([3.5000])
    """

    momentum: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("momentum", self.momentum, "use 0.9", least=0, below=1, loose=True)

    def largest_step(self, L: float) -> float:
        return 2 * (1 + self.momentum) / (1 + 2 * self.momentum) / L

    def point(self, y: Tensor, last: Tensor) -> Tensor:
        return y + self.momentum * (y - last)

    def move(self, point: Tensor, y: Tensor, last: Tensor, gradient: Tensor) -> Tensor:
        return point - self.step_size * gradient
