"""ITD-BiO, AID-BiO and stocBiO: one loop, whose estimator makes the difference (arXiv 2108.00330, chapters 2 and 4)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from metalearn.bilevel.algorithms.base import (
    Algorithm,
    State,
    accumulate_growth,
    check_below_smoothness,
    describe_estimate,
    take_step,
)
from metalearn.bilevel.estimators import AID, ITD, StocBiONeumann
from metalearn.bilevel.oracles import Oracles
from metalearn.bilevel.problem import BilevelProblem, Constants
from metalearn.bilevel.solvers.inner import GradientDescent
from metalearn.bilevel.solvers.linear import CG
from metalearn.bilevel.solvers.step_sizes import inner_steps, smoothness_of_phi
from metalearn.checks import check_flag, check_number

__all__ = ["BiO", "aid_bio", "itd_bio", "stoc_bio"]


@dataclass(frozen=True, kw_only=True)
class BiO(Algorithm):
    """``x <- x - b G``, where the inner and the linear solver start where the last step's ended.

    Attributes:
        estimator: how the hypergradient is estimated. ``ITD`` makes it ITD-BiO, ``AID`` AID-BiO and ``StocBiONeumann``
            stocBiO; any other will do.
        step_size: the step size ``b`` of ``x``.
        warm_start: whether ``y`` and ``v`` are kept. Otherwise, in each step ``y`` starts at ``init_inner(x)`` and
            ``v`` at 0.

    Example:
        >>> import torch
        >>> from metalearn.bilevel import ITD, BiO, GradientDescent, quadratic, run
        >>> problem = quadratic(size=5, outer_size=3, kappa=10.0, seed=0).problem
        >>> algorithm = BiO(estimator=ITD(inner=GradientDescent(step_size=1.0, steps=20)), step_size=1e-3)
        >>> solved = run(problem, algorithm, torch.zeros(3, dtype=torch.float64), steps=50)
        >>> solved.history[-1].loss < solved.history[0].loss
        True
    """

    step_size: float
    warm_start: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("step_size", self.step_size, "use 0.1", above=0, owner="BiO", loose=True)
        check_flag("warm_start", self.warm_start, owner="BiO")

    def check(self, problem: BilevelProblem) -> None:
        super().check(problem)
        check_below_smoothness("BiO", "step_size", self.step_size, problem)

    def extra(self, x: Any, y: Any) -> State:
        return {"v": None}

    def advance(self, oracles: Oracles, state: State) -> State:
        value, changed = self.direction(oracles, state)
        return {"x": take_step(state["x"], value, self.step_size), **changed}

    def direction(self, oracles: Oracles, state: State) -> tuple[Tensor, State]:
        """Return the hypergradient ``G``, and the entries of the state that change beside ``x``.

        With it another optimiser than a step of ``b`` can move ``x``.
        """
        x, y, v = state["x"], state["y"], state["v"]
        if not self.warm_start:
            y, v = oracles.y.ravel(oracles.problem.init_inner(oracles.x.unravel(x))).detach(), None
        estimate = self.estimator.estimate(oracles, x, y, v, state["step"])
        growth = accumulate_growth(state, estimate.growth) if self.warm_start else None
        return estimate.value, {
            "y": estimate.y,
            "v": estimate.v,
            **describe_estimate(oracles, x, estimate, certify=self.certify),
            "growth": growth,
        }


def aid_bio(constants: Constants, factor: float = 10.0, step_size: float | None = None) -> BiO:
    """Make AID-BiO by the thesis's rules (theorem 2.1 there).

    ``D = O(k)`` steps of size ``1/L``, ``N = O(sqrt(k))`` iterations of conjugate gradients, and an outer step ``1/(4 L_Phi)``.

    Args:
        constants: the problem's constants. ``mu`` and ``L`` must be known, and what
            :func:`~metalearn.bilevel.solvers.step_sizes.smoothness_of_phi` needs.
        factor: how much smaller each of the two solvers makes its error in an outer step.
        step_size: the step size of ``x``; ``None`` for ``1/(4 L_Phi)``.

    Example:
        >>> from metalearn.bilevel import aid_bio, quadratic
        >>> algorithm = aid_bio(quadratic(size=5, outer_size=3, kappa=10.0, seed=0).constants)
        >>> algorithm.estimator.inner.steps, algorithm.estimator.solver.iterations
        (22, 5)
    """
    mu, smooth = constants.need("aid_bio", "mu", "L")
    root = math.sqrt(smooth / mu)
    linear = inner_steps((root - 1) / (root + 1), 2 * factor)
    inner = GradientDescent(step_size=1 / smooth, steps=inner_steps(1 - mu / smooth, factor))
    return BiO(
        estimator=AID(inner=inner, solver=CG(iterations=linear)),
        step_size=step_size or 1 / (4 * smoothness_of_phi(constants)),
    )


def itd_bio(constants: Constants, accuracy: float = 1e-3, step_size: float | None = None) -> BiO:
    """Make ITD-BiO by the thesis's rules (theorem 2.2 there).

    ``D = O(k log(1/accuracy))`` steps of size ``1/L``, and an outer step ``1/(4 L_Phi)``.

    Args:
        constants: the problem's constants, as for :func:`aid_bio`.
        accuracy: how much of its error at ``D = 0`` the hypergradient keeps, ``(1 - mu/L)^D``.
        step_size: the step size of ``x``; ``None`` for ``1/(4 L_Phi)``.

    Example:
        >>> from metalearn.bilevel import itd_bio, quadratic
        >>> algorithm = itd_bio(quadratic(size=5, outer_size=3, kappa=10.0, seed=0).constants, accuracy=1e-3)
        >>> type(algorithm.estimator).__name__, algorithm.estimator.inner.steps
        ('ITD', 66)
    """
    mu, smooth = constants.need("itd_bio", "mu", "L")
    inner = GradientDescent(step_size=1 / smooth, steps=inner_steps(1 - mu / smooth, 1 / accuracy))
    return BiO(estimator=ITD(inner=inner), step_size=step_size or 1 / (4 * smoothness_of_phi(constants)))


def stoc_bio(
    constants: Constants,
    batch: int,
    accuracy: float = 0.1,
    factor: float = 10.0,
    eta: float | None = None,
    step_size: float | None = None,
) -> BiO:
    """Make stocBiO by the thesis's rules (theorem 4.1 there).

    Inner steps of size ``2/(L + mu)``, ``eta = 1/L``, and an outer step ``1/(4 L_Phi)``.

    Args:
        constants: as for :func:`aid_bio`.
        batch: ``B`` of the shrinking Hessian batches.
        accuracy: ``(1 - eta mu)^{Q+1}``, the bias of the series.
        factor: by how much the inner solver contracts its error in an outer step.
        eta: of the series instead.
        step_size: of the outer loop instead.
    """
    mu, smooth = constants.need("stoc_bio", "mu", "L")
    eta = 1 / smooth if eta is None else eta
    inner = GradientDescent(step_size=2 / (smooth + mu), steps=inner_steps((smooth - mu) / (smooth + mu), factor))
    terms = max(1, inner_steps(max(0.0, 1 - eta * mu), 1 / accuracy) - 1)
    return BiO(
        estimator=StocBiONeumann(inner=inner, eta=eta, Q=terms, batch=batch),
        step_size=step_size or 1 / (4 * smoothness_of_phi(constants)),
    )
