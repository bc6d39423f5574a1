"""Algorithms and estimators of bilevel optimisation by name, for configurations."""

from __future__ import annotations

from typing import Literal, get_args

from metalearn.bilevel.algorithms import MRBO, VRBO, Algorithm, BiO
from metalearn.bilevel.estimators import AID, ITD, PZOBO, Estimator, StocBiONeumann
from metalearn.bilevel.solvers.inner import GradientDescent, InnerSolver, Nesterov
from metalearn.bilevel.solvers.linear import CG, FixedPoint, Neumann
from metalearn.checks import MOST_STEPS, check_choice, check_number, check_whole
from metalearn.errors import ConfigError

__all__ = ["AlgorithmName", "EstimatorName", "make_algorithm"]

AlgorithmName = Literal["bio", "mrbo", "vrbo"]
EstimatorName = Literal["aid_cg", "aid_fp", "aid_neumann", "itd", "stoc_bio", "pzobo"]


def make_algorithm(
    algorithm: AlgorithmName,
    estimator: EstimatorName,
    outer_lr: float,
    inner_lr: float,
    inner_steps: int,
    inner_momentum: float,
    linear_steps: int,
    linear_lr: float,
    period: int,
) -> Algorithm:
    """An algorithm from plain arguments.

    Args:
        algorithm: ``"bio"`` takes any estimator; ``"mrbo"`` and ``"vrbo"`` move ``y`` themselves and take ``"stoc_bio"`` alone.
        estimator: of the hypergradient.
        outer_lr: the step size of ``x``.
        inner_lr: that of ``y``.
        inner_steps: of ``y`` in an outer step; MRBO takes one.
        inner_momentum: of Nesterov's method; 0 for gradient descent.
        linear_steps: iterations for ``H v = grad_y f``; stocBiO's ``Q``; PZOBO's directions.
        linear_lr: step size of the fixed point, Neumann and stocBiO's series.
        period: VRBO's outer steps between large batches.

    Raises:
        ConfigError: an argument is out of range, or the algorithm does not take the estimator.
    """
    check_choice("algorithm", algorithm, get_args(AlgorithmName))
    check_choice("estimator", estimator, get_args(EstimatorName))
    for name, size in (("outer_lr", outer_lr), ("inner_lr", inner_lr), ("linear_lr", linear_lr)):
        check_number(name, size, "leave it out for its default", above=0)
    for name, count in (("inner_steps", inner_steps), ("linear_steps", linear_steps), ("period", period)):
        check_whole(name, count, 1, MOST_STEPS)
    if algorithm != "bio":
        if estimator != "stoc_bio":
            raise ConfigError(
                f"estimator is {estimator!r} with algorithm={algorithm!r}, but it takes its direction from a Neumann series at a "
                "point; use estimator='stoc_bio'"
            )
        point = StocBiONeumann(eta=linear_lr, Q=linear_steps)
        if algorithm == "mrbo":
            return MRBO(estimator=point, step_size=outer_lr, inner_step_size=inner_lr, d=2.0, m=8.0)
        return VRBO(
            estimator=point, anchor=point, step_size=outer_lr, inner_step_size=inner_lr, period=period,
            inner_steps=inner_steps,
        )  # fmt: skip
    inner: InnerSolver = GradientDescent(step_size=inner_lr, steps=inner_steps)
    if inner_momentum:
        inner = Nesterov(step_size=inner_lr, momentum=inner_momentum, steps=inner_steps)
    return BiO(estimator=_estimator(estimator, inner, linear_steps, linear_lr), step_size=outer_lr)


def _estimator(name: EstimatorName, inner: InnerSolver, steps: int, step_size: float) -> Estimator:
    if name == "itd":
        return ITD(inner=inner)
    if name == "stoc_bio":
        return StocBiONeumann(inner=inner, eta=step_size, Q=steps)
    if name == "pzobo":
        return PZOBO(inner=inner, mu=0.1, Q=steps)
    if name == "aid_cg":
        return AID(inner=inner, solver=CG(iterations=steps))
    solver = FixedPoint if name == "aid_fp" else Neumann
    return AID(inner=inner, solver=solver(iterations=steps, step_size=step_size))
