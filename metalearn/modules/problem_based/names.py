"""Algorithms, estimators and linear solvers of bilevel optimisation by name, for configurations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from metalearn.bilevel.algorithms import MRBO, VRBO, Algorithm, BiO
from metalearn.bilevel.estimators import AID, ITD, PZOBO, Estimator, StocBiONeumann
from metalearn.bilevel.solvers.indefinite import NormalCG
from metalearn.bilevel.solvers.inner import GradientDescent, InnerSolver, Nesterov
from metalearn.bilevel.solvers.linear import CG, FixedPoint, LinearSolver, Neumann
from metalearn.checks import MOST_STEPS, check_choice, check_number, check_whole
from metalearn.errors import ConfigError

__all__ = [
    "ALGORITHMS",
    "ESTIMATORS",
    "LINEAR_SOLVERS",
    "AlgorithmName",
    "AlgorithmOptions",
    "EstimatorName",
    "LinearSolverName",
    "make_inner_solver",
]

AlgorithmName = Literal["bio", "mrbo", "vrbo"]
EstimatorName = Literal["aid_cg", "aid_fp", "aid_neumann", "itd", "stoc_bio", "pzobo"]
LinearSolverName = Literal["cg", "normal_cg", "fixed_point", "neumann"]


@dataclass(frozen=True, kw_only=True)
class AlgorithmOptions:
    """An algorithm in plain arguments.

    Attributes:
        algorithm: a key of :data:`ALGORITHMS`.
        estimator: what estimates the hypergradient, a key of :data:`ESTIMATORS`.
        outer_lr: the step size of ``x``.
        inner_lr: that of ``y``.
        inner_steps: steps of ``y`` in an outer step; MRBO takes one.
        inner_momentum: the momentum of Nesterov's method; 0 for gradient descent.
        linear_steps: iterations for ``H v = grad_y f``; stocBiO's ``Q``; PZOBO's directions.
        linear_lr: step size of the fixed point, Neumann and stocBiO's series.
        period: VRBO's outer steps between large batches.

    Raises:
        ConfigError: an argument is out of range, or the algorithm does not take the estimator.
    """

    algorithm: AlgorithmName
    estimator: EstimatorName
    outer_lr: float
    inner_lr: float
    inner_steps: int
    inner_momentum: float
    linear_steps: int
    linear_lr: float
    period: int

    def __post_init__(self) -> None:
        check_choice("algorithm", self.algorithm, list(ALGORITHMS))
        check_choice("estimator", self.estimator, list(ESTIMATORS))
        for name in ("outer_lr", "inner_lr", "linear_lr"):
            check_number(name, getattr(self, name), "leave it out for its default", above=0)
        for name in ("inner_steps", "linear_steps", "period"):
            check_whole(name, getattr(self, name), 1, MOST_STEPS)
        check_number("inner_momentum", self.inner_momentum, "use 0.9, or 0.0 for gradient descent", least=0, below=1)
        if self.algorithm != "bio" and self.estimator != "stoc_bio":
            raise ConfigError(
                f"estimator is {self.estimator!r} with algorithm={self.algorithm!r}, but it takes its direction from a Neumann "
                "series at a point; use estimator='stoc_bio'"
            )

    def make(self) -> Algorithm:
        """Make the algorithm."""
        return ALGORITHMS[self.algorithm](self)


def make_inner_solver(step_size: float, momentum: float, steps: int) -> InnerSolver:
    """Make Nesterov's method, or gradient descent where the momentum is 0."""
    if momentum:
        return Nesterov(step_size=step_size, momentum=momentum, steps=steps)
    return GradientDescent(step_size=step_size, steps=steps)


def _make_bio(options: AlgorithmOptions) -> BiO:
    inner = make_inner_solver(options.inner_lr, options.inner_momentum, options.inner_steps)
    estimator = ESTIMATORS[options.estimator](inner, options.linear_steps, options.linear_lr)
    return BiO(estimator=estimator, step_size=options.outer_lr)


def _make_mrbo(options: AlgorithmOptions) -> MRBO:
    point = StocBiONeumann(eta=options.linear_lr, Q=options.linear_steps)
    return MRBO(estimator=point, step_size=options.outer_lr, inner_step_size=options.inner_lr, d=2.0, m=8.0)


def _make_vrbo(options: AlgorithmOptions) -> VRBO:
    point = StocBiONeumann(eta=options.linear_lr, Q=options.linear_steps)
    return VRBO(
        estimator=point, anchor=point, step_size=options.outer_lr, inner_step_size=options.inner_lr, period=options.period,
        inner_steps=options.inner_steps,
    )  # fmt: skip


ALGORITHMS: dict[str, Callable[[AlgorithmOptions], Algorithm]] = {
    "bio": _make_bio,
    "mrbo": _make_mrbo,
    "vrbo": _make_vrbo,
}
"""``"bio"`` takes any estimator; ``"mrbo"`` and ``"vrbo"`` move ``y`` themselves and take ``"stoc_bio"`` alone."""

LINEAR_SOLVERS: dict[str, Callable[[int, float], LinearSolver]] = {
    "cg": lambda iterations, step_size: CG(iterations=iterations),
    "normal_cg": lambda iterations, step_size: NormalCG(iterations=iterations),
    "fixed_point": lambda iterations, step_size: FixedPoint(iterations=iterations, step_size=step_size),
    "neumann": lambda iterations, step_size: Neumann(iterations=iterations, step_size=step_size),
}
"""Of a number of iterations and a step size, which conjugate gradients have none of."""


def _make_aid(solver: LinearSolverName) -> Callable[[InnerSolver, int, float], Estimator]:
    return lambda inner, iterations, step_size: AID(inner=inner, solver=LINEAR_SOLVERS[solver](iterations, step_size))


ESTIMATORS: dict[str, Callable[[InnerSolver, int, float], Estimator]] = {
    "aid_cg": _make_aid("cg"),
    "aid_fp": _make_aid("fixed_point"),
    "aid_neumann": _make_aid("neumann"),
    "itd": lambda inner, iterations, step_size: ITD(inner=inner),
    "stoc_bio": lambda inner, iterations, step_size: StocBiONeumann(inner=inner, eta=step_size, Q=iterations),
    "pzobo": lambda inner, iterations, step_size: PZOBO(inner=inner, mu=0.1, Q=iterations),
}
"""Of an inner solver, a number of iterations (or of directions) and the step size of the linear iteration."""
