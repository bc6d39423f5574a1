"""AccBiO and AccBiO-BG: Nesterov's acceleration of the outer loop (arXiv 2108.00330, chapter 3)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from metalearn.bilevel.algorithms.base import (
    Algorithm,
    State,
    accumulate_growth,
    check_below_smoothness,
    describe_estimate,
    take_step,
)
from metalearn.bilevel.estimators import AID
from metalearn.bilevel.oracles import Oracles
from metalearn.bilevel.problem import BilevelProblem, Constants
from metalearn.bilevel.solvers.inner import Nesterov
from metalearn.bilevel.solvers.linear import HeavyBallLinear
from metalearn.bilevel.solvers.step_sizes import extrapolation, heavy_ball, inner_steps, nesterov, smoothness_of_phi
from metalearn.bilevel.trees import Tree
from metalearn.checks import check_number
from metalearn.errors import ConfigError

__all__ = ["AccBiO", "AccBiOBG", "acc_bio", "acc_bio_bg", "accelerated_aid"]


@dataclass(frozen=True, kw_only=True)
class AccBiO(Algorithm):
    """Nesterov's method on ``Phi``, each hypergradient from a cold start.

    ``z+ = x - G(x)/L_phi; x+ = (1 + m) z+ - m z`` with ``m = (sqrt(k) - 1)/(sqrt(k) + 1)`` and ``k = L_phi/mu_x``. In each step
    the inner solver starts at ``init_inner(x)`` and the linear one at 0.

    For a convex ``Phi`` that is not strongly convex, add ``epsilon |x|^2/(2 R^2)`` to ``outer_loss`` and give ``epsilon/R^2`` as
    ``mu_x``. The solution is ``z``.

    Attributes:
        estimator: how the hypergradient is estimated. The thesis takes that of :func:`accelerated_aid`.
        L_phi: the smoothness of ``Phi``.
        mu_x: the constant of strong convexity of ``Phi``.

    Example:
        >>> import torch
        >>> from metalearn.bilevel import AccBiO, accelerated_aid, quadratic, run
        >>> made = quadratic(size=5, outer_size=3, kappa=2.0, seed=0)
        >>> known = made.constants
        >>> algorithm = AccBiO(estimator=accelerated_aid(known, 10, 10), L_phi=known.L_phi, mu_x=known.mu_x)
        >>> solved = run(made.problem, algorithm, torch.zeros(3, dtype=torch.float64), steps=3)
        >>> solved.history[-1].norm < solved.history[0].norm
        True
    """

    L_phi: float
    mu_x: float

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_constants("AccBiO", self.L_phi, self.mu_x)

    def check(self, problem: BilevelProblem) -> None:
        super().check(problem)
        check_below_smoothness("AccBiO", "1/L_phi", 1 / self.L_phi, problem)

    def extra(self, x: Tensor, y: Tensor) -> State:
        return {"z": x.clone()}

    def advance(self, oracles: Oracles, state: State) -> State:
        x, before = state["x"], state["z"]
        y = oracles.y.ravel(oracles.problem.init_inner(oracles.x.unravel(x))).detach()
        estimate = self.estimator.estimate(oracles, x, y, None, state["step"])
        z = take_step(x, estimate.value, 1 / self.L_phi)
        m = extrapolation(self.mu_x, self.L_phi)
        return {
            "x": z + m * (z - before),
            "z": z,
            "y": estimate.y,
            **describe_estimate(oracles, x, estimate, certify=self.certify),
        }

    def solution(self, state: State) -> Tree:
        return _shape_like(state["z"], state["x"])


@dataclass(frozen=True, kw_only=True)
class AccBiOBG(Algorithm):
    """Nesterov's method on ``Phi`` from three points, each hypergradient from where the last one ended.

    ``w = h x + (1 - h) z; x+ = t w + (1 - t) x - b G(w); z+ = w - a G(w)`` with ``a <= 1/(2 L_phi)``,
    ``h = sqrt(a mu_x)/(sqrt(a mu_x) + 2)``, ``t = sqrt(a mu_x)/2``, ``b = sqrt(a/mu_x)``. Its better rate is proved where the
    gradient of ``f`` is bounded. The solution is ``z``.

    Attributes:
        estimator: how the hypergradient is estimated. The thesis takes that of :func:`accelerated_aid`.
        step_size: the step size ``a``.
        mu_x: the constant of strong convexity of ``Phi``.

    Example:
        >>> import torch
        >>> from metalearn.bilevel import AccBiOBG, accelerated_aid, quadratic, run
        >>> made = quadratic(size=5, outer_size=3, kappa=2.0, seed=0)
        >>> known = made.constants
        >>> step_size = 1 / (2 * known.L_phi)
        >>> algorithm = AccBiOBG(estimator=accelerated_aid(known, 10, 10), step_size=step_size, mu_x=known.mu_x)
        >>> solved = run(made.problem, algorithm, torch.zeros(3, dtype=torch.float64), steps=3)
        >>> solved.history[-1].norm < solved.history[0].norm
        True
    """

    step_size: float
    mu_x: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("step_size", self.step_size, "use 0.1", above=0, owner="AccBiOBG", loose=True)
        _check_constants("AccBiOBG", 1 / self.step_size, self.mu_x)

    def check(self, problem: BilevelProblem) -> None:
        super().check(problem)
        check_below_smoothness("AccBiOBG", "step_size", self.step_size, problem)

    def extra(self, x: Tensor, y: Tensor) -> State:
        return {"z": x.clone(), "v": None}

    def advance(self, oracles: Oracles, state: State) -> State:
        x, z = state["x"], state["z"]
        root = math.sqrt(self.step_size * self.mu_x)
        share, pull = root / (root + 2), root / 2
        w = share * x + (1 - share) * z
        estimate = self.estimator.estimate(oracles, w, state["y"], state["v"], state["step"])
        return {
            "x": take_step(pull * w + (1 - pull) * x, estimate.value, math.sqrt(self.step_size / self.mu_x)),
            "z": take_step(w, estimate.value, self.step_size),
            "y": estimate.y,
            "v": estimate.v,
            **describe_estimate(oracles, w, estimate, certify=self.certify),
            "growth": accumulate_growth(state, estimate.growth),
        }

    def solution(self, state: State) -> Tree:
        return _shape_like(state["z"], state["x"])


def accelerated_aid(constants: Constants, inner: int, iterations: int) -> AID:
    """The thesis's estimator: Nesterov's method for ``y`` and Polyak's heavy ball for ``v``.

    Args:
        constants: the problem's constants, of which ``mu`` and ``L`` must be known.
        inner: how many steps Nesterov's method takes.
        iterations: how many iterations the heavy ball takes.

    Example:
        >>> from metalearn.bilevel import accelerated_aid, quadratic
        >>> constants = quadratic(size=5, outer_size=3, kappa=100.0, seed=0).constants
        >>> type(accelerated_aid(constants, inner=20, iterations=10).inner).__name__
        'Nesterov'
    """
    mu, smooth = constants.need("accelerated_aid", "mu", "L")
    step, ball = nesterov(mu, smooth), heavy_ball(mu, smooth)
    return AID(
        inner=Nesterov(step_size=step.step_size, momentum=step.momentum, steps=inner),
        solver=HeavyBallLinear(step_size=ball.step_size, momentum=ball.momentum, iterations=iterations),
    )


def acc_bio(constants: Constants, accuracy: float = 1e-6) -> AccBiO:
    """AccBiO with its step sizes from the constants, and so many inner steps that their error is ``accuracy`` times the first.

    Args:
        constants: the problem's constants. ``mu``, ``L`` and ``mu_x`` must be known, and what
            :func:`~metalearn.bilevel.solvers.step_sizes.smoothness_of_phi` needs.
        accuracy: how much of their error the inner and the linear solver keep in an outer step.

    Example:
        >>> import torch
        >>> from metalearn.bilevel import acc_bio, quadratic, run
        >>> made = quadratic(size=5, outer_size=3, kappa=2.0, seed=0)
        >>> algorithm = acc_bio(made.problem.constants)
        >>> solved = run(made.problem, algorithm, torch.zeros(3, dtype=torch.float64), steps=3)
        >>> solved.history[-1].norm < solved.history[0].norm
        True
    """
    mu, smooth, mu_x = constants.need("acc_bio", "mu", "L", "mu_x")
    estimator = accelerated_aid(constants, *_count_steps(mu, smooth, 1 / accuracy))
    return AccBiO(estimator=estimator, L_phi=smoothness_of_phi(constants), mu_x=mu_x)


def acc_bio_bg(constants: Constants, factor: float = 100.0) -> AccBiOBG:
    """AccBiO-BG with its step sizes from the constants.

    Args:
        constants: the problem's constants, as for :func:`acc_bio`.
        factor: how much smaller the inner and the linear solver make their errors in an outer step.

    Example:
        >>> import torch
        >>> from metalearn.bilevel import acc_bio_bg, quadratic, run
        >>> made = quadratic(size=5, outer_size=3, kappa=2.0, seed=0)
        >>> algorithm = acc_bio_bg(made.problem.constants)
        >>> solved = run(made.problem, algorithm, torch.zeros(3, dtype=torch.float64), steps=3)
        >>> solved.history[-1].norm < solved.history[0].norm
        True
    """
    mu, smooth, mu_x = constants.need("acc_bio_bg", "mu", "L", "mu_x")
    estimator = accelerated_aid(constants, *_count_steps(mu, smooth, factor))
    return AccBiOBG(estimator=estimator, step_size=1 / (2 * smoothness_of_phi(constants)), mu_x=mu_x)


def _count_steps(mu: float, smooth: float, factor: float) -> tuple[int, int]:
    """Steps of Nesterov's method and of the heavy ball for a contraction by ``1/factor``."""
    kappa = smooth / mu
    first = inner_steps(math.sqrt(max(0.0, 1 - kappa**-0.5)), math.sqrt(2 * kappa) * factor)
    second = inner_steps(math.sqrt(heavy_ball(mu, smooth).momentum), 2 * factor)
    return first, second


def _shape_like(vector: Tensor, tree: Tree) -> Tree:
    leaves, spec = tree_flatten(tree)
    lead = vector.ndim - 1
    sizes = [leaf.shape[lead:].numel() for leaf in leaves]
    pieces = vector.split(sizes, -1)
    return tree_unflatten([piece.reshape(leaf.shape) for piece, leaf in zip(pieces, leaves, strict=True)], spec)


def _check_constants(owner: str, L_phi: float, mu_x: float) -> None:
    check_number("L_phi", L_phi, "give the smoothness of Phi", above=0, owner=owner, loose=True)
    check_number("mu_x", mu_x, "give the strong convexity of Phi", above=0, owner=owner, loose=True)
    if mu_x > L_phi:
        raise ConfigError(
            f"{owner}(mu_x={mu_x:g}) is above L_phi = {L_phi:g}, but a strong convexity is below the smoothness; "
            "lower it"
        )
