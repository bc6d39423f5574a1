"""What an estimator is: how the hypergradient at a point is found, the inner problem included."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from metalearn.bilevel.linearization import Linearization
from metalearn.bilevel.oracles import Oracles, OuterGradient, check_finite
from metalearn.bilevel.prepared import Prepared
from metalearn.bilevel.problem import Constants
from metalearn.bilevel.solvers.growth import check_growth
from metalearn.bilevel.solvers.inner import Gradient, InnerSolution, InnerSolver
from metalearn.bilevel.streams import Fixed
from metalearn.bilevel.trees import all_finite
from metalearn.checks import check_kind
from metalearn.errors import BilevelError

__all__ = [
    "Estimate",
    "Estimator",
    "bind_inner_gradient",
    "check_reach",
    "check_reach_first",
    "check_result",
    "is_deterministic",
]


class Estimate(NamedTuple):
    """A hypergradient and what it was made of, as vectors.

    Attributes:
        value: ``[P]``, the mean over problems where they share ``x``, or ``[B, P]``.
        y: where the inner solver ended, ``[D]`` or ``[B, D]``.
        v: the solution of ``H v = grad_y f``, from which the next one may start; ``None`` for an estimator that has
            none.
        losses: the outer losses, ``[]`` or ``[B]``.
        inner_residual: ``|grad_y g(x, y)|``, ``[]`` or ``[B]``; ``None`` where it was not evaluated.
        dual_residual: ``|H v - grad_y f|``, ``[]`` or ``[B]``; ``None`` where it was not evaluated.
        inner_steps: how many gradients the inner solver took.
        iterations: how many iterations the linear solver took.
        growth: by how much the norm of the inner gradient grew while the inner solver ran, ``[]`` or ``[B]``. It is 0
            at the level of rounding, and ``None`` for batches and without a run.

    Example:
        >>> import torch
        >>> from metalearn.bilevel import Estimate
        >>> estimate = Estimate(torch.zeros(3), y=torch.zeros(5), v=None, losses=torch.tensor(0.5))
        >>> estimate.inner_steps
        0
    """

    value: Tensor
    y: Tensor
    v: Tensor | None
    losses: Tensor
    inner_residual: Tensor | None = None
    dual_residual: Tensor | None = None
    inner_steps: int = 0
    iterations: int = 0
    growth: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Estimator(ABC):
    """A strategy for the hypergradient.

    Attributes:
        inner: the solver of the inner problem; ``None`` to take ``y`` as it is.

    Example:
        >>> from metalearn.bilevel import AID, ITD, Estimator, GradientDescent
        >>> inner = GradientDescent(step_size=0.1, steps=10)
        >>> [isinstance(kind(inner=inner), Estimator) for kind in (AID, ITD)]
        [True, True]
    """

    inner: InnerSolver | None = None

    def __post_init__(self) -> None:
        if self.inner is not None:
            remedy = "use inner=GradientDescent(step_size=..., steps=...)"
            check_kind(f"the inner of {type(self).__name__}", self.inner, InnerSolver, remedy)

    @abstractmethod
    def estimate(self, oracles: Oracles, x: Tensor, y: Tensor, v: Tensor | None, step: int) -> Estimate:
        """The hypergradient at ``x``, with the inner solver started at ``y`` and the linear solver at ``v``."""

    def check(self, constants: Constants) -> None:
        """Raise a ConfigError if a step size is outside the stable range."""
        if self.inner is not None:
            self.inner.check(constants)

    def solve_inner(self, oracles: Oracles, x: Tensor, y: Tensor, step: int) -> InnerSolution:
        """Run the inner solver, if there is one.

        Raises:
            DivergenceError: something is not finite; or, of a deterministic problem, the inner gradient has grown a thousandfold.
        """
        if self.inner is None:
            return InnerSolution(y.detach(), 0, None, None)
        outer = oracles.outer_step(step)
        solved = self.inner.solve(bind_inner_gradient(oracles, x, step), y, outer)
        if solved.first is not None and solved.last is not None and is_deterministic(oracles):
            # gradients of two batches differ by chance, and tell no growth
            check_growth(solved.first, solved.last, max(0, solved.steps - 1), self.inner.step_size, outer)
        return solved


def bind_inner_gradient(oracles: Oracles, x: Tensor, step: int) -> Gradient:
    """``grad_y g`` at ``x`` as a function of ``y`` and of the number of the inner step, which draws the batch."""

    prepared = Prepared(oracles, x.detach())

    def gradient(y: Tensor, index: int) -> Tensor:
        return oracles.inner_gradient(x, y, prepared.of(oracles.sample("inner", step, index)))

    return gradient


def is_deterministic(oracles: Oracles) -> bool:
    """Whether every draw gives the same data."""
    return oracles.problem.stream is None or isinstance(oracles.problem.stream, Fixed)


def check_result(
    oracles: Oracles, x: Tensor, y: Tensor, outer: OuterGradient, value: Tensor, step: int, v: Tensor | None = None
) -> None:
    """Raise if a value is not finite, naming the term that was first, or if neither loss depends on ``x``.

    Raises:
        BilevelError: nothing depends on ``x``.
        DivergenceError: something is not finite.
    """
    if not all_finite(value, outer.losses):
        terms = {"outer_loss": outer.losses, "grad_y f": outer.of_y, "grad_x f": outer.of_x, "v": v, "J v": value}
        for name, term in terms.items():
            if name == "v" and v is not None and not bool(v.isfinite().all()):
                _check_products(oracles, x, y, outer, step)
            if term is not None:
                check_finite(term, name, oracles.outer_step(step))
    if not outer.reaches_x and not bool(value.any()):
        check_reach(outer, oracles.linearize(x, y, oracles.sample("inner", step)))


def check_reach(outer: OuterGradient, here: Linearization) -> None:
    """Raise a BilevelError if neither loss depends on ``x``."""
    if not outer.reaches_x and not here.depends_on(here.reached[0]):
        raise BilevelError(
            "neither outer_loss nor inner_loss depends on x, but x is what is optimised; compute one of them from x, "
            "without detach() or .item()"
        )


@contextmanager
def check_reach_first(outer: OuterGradient, here: Linearization) -> Iterator[None]:
    """Where a solver fails, say first that neither loss depends on ``x``, if that is so: its curvature then matters to nobody."""
    try:
        yield
    except BilevelError:
        check_reach(outer, here)
        raise


def _check_products(oracles: Oracles, x: Tensor, y: Tensor, outer: OuterGradient, step: int) -> None:
    """Raise if what ``v`` is made of is not finite."""
    here = oracles.linearize(x, y, oracles.sample("hessian", step))
    check_finite(here.gradient, "grad_y g", oracles.outer_step(step))
    check_finite(here.hvp(outer.of_y), "grad_yy g", oracles.outer_step(step))
