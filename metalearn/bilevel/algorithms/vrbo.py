"""VRBO: variance reduction by differences between neighbouring points, in two loops (arXiv 2106.04692)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.linalg import vector_norm

from metalearn.bilevel.algorithms.base import Algorithm, State, accumulate_growth, describe_estimate, take_step
from metalearn.bilevel.estimators import Estimator
from metalearn.bilevel.estimators.base import is_deterministic
from metalearn.bilevel.oracles import Oracles, check_finite
from metalearn.bilevel.problem import BilevelProblem
from metalearn.bilevel.solvers.growth import check_step_size, measure_growth
from metalearn.checks import check_kind, check_number, check_whole
from metalearn.errors import ConfigError

__all__ = ["VRBO"]


@dataclass(frozen=True, kw_only=True)
class VRBO(Algorithm):
    """Directions that are taken anew now and then, and follow the points by differences in between (SPIDER).

    Every ``period`` steps ``u`` and ``v`` are taken anew on large batches. Then ``x+ = x - a v``. From the pair of points
    ``(x, y)``, ``(x+, y)`` on, in each of ``inner_steps`` steps and once more at the end,

        v += G(x_t, y_t) - G(x_{t-1}, y_{t-1}), u likewise with grad_y g, each pair on the same small batch; y_{t+1} = y_t - b u.

    So ``u`` and ``v`` belong to the point that the next step starts from.

    Attributes:
        estimator: estimates the direction at a point on small batches. It has no inner solver.
        anchor: estimates the direction on large batches. It has no inner solver.
        step_size: the step size ``a`` of ``x``.
        inner_step_size: the step size ``b`` of ``y``.
        period: how many outer steps lie between two large batches.
        inner_steps: how many steps ``y`` takes in an outer step.
        inner_size: how many examples a small batch of ``u`` has; ``None`` for the stream's own size.
        anchor_size: how many examples a large batch of ``u`` has; ``None`` for the stream's own size.

    Example:
        >>> import torch
        >>> from metalearn.bilevel import VRBO, StocBiONeumann, quadratic, run
        >>> problem = quadratic(size=5, outer_size=3, kappa=10.0, seed=0).problem
        >>> estimator = StocBiONeumann(eta=0.5, Q=10)
        >>> algorithm = VRBO(estimator=estimator, anchor=estimator, step_size=1e-3, inner_step_size=0.5)
        >>> solved = run(problem, algorithm, torch.zeros(3, dtype=torch.float64), steps=5)
        >>> [record.step for record in solved.history]
        [1, 2, 3, 4, 5]
    """

    anchor: Estimator
    step_size: float
    inner_step_size: float
    period: int = 3
    inner_steps: int = 3
    inner_size: int | None = None
    anchor_size: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("step_size", "inner_step_size"):
            check_number(name, getattr(self, name), "use 0.1", above=0, owner="VRBO", loose=True)
        for name in ("period", "inner_steps"):
            check_whole(name, getattr(self, name), 1, remedy="use 3", owner="VRBO", loose=True)
        for name in ("inner_size", "anchor_size"):
            if getattr(self, name) is not None:
                check_whole(
                    name, getattr(self, name), 1, remedy="use None for the size of the stream", owner="VRBO", loose=True
                )
        check_kind("the anchor of VRBO", self.anchor, Estimator, "use StocBiONeumann(...) or another one")
        for name in ("estimator", "anchor"):
            if getattr(self, name).inner is not None:
                raise ConfigError(
                    f"VRBO({name}={type(getattr(self, name)).__name__}(inner=...)), but it moves y itself; give an "
                    "estimator with inner=None"
                )

    def check(self, problem: BilevelProblem) -> None:
        super().check(problem)
        self.anchor.check(problem.constants)
        if problem.constants.L is not None:
            check_step_size("VRBO.inner_step_size", self.inner_step_size, 2 / problem.constants.L, problem.constants.L)

    def extra(self, x: Tensor, y: Tensor) -> State:
        return {"u": None, "v": None}

    def advance(self, oracles: Oracles, state: State) -> State:
        x, y, u, v, step = (state[name] for name in ("x", "y", "u", "v", "step"))
        oracles.draws = self.inner_steps + 2
        draws = step * oracles.draws  # the first number of this outer step's draws; no two draws share one
        if step % self.period == 0:
            u = oracles.inner_gradient(x, y, oracles.sample("inner", draws, 0, self.anchor_size))
            v = self.anchor.estimate(oracles, x, y, None, draws).value
        first = u
        last, point = (x, y), (take_step(x, v, self.step_size), y)
        moved = v
        for index in range(self.inner_steps + 1):
            draw = draws + 1 + index
            sample = oracles.sample("inner", draw, 0, self.inner_size)
            estimate = self.estimator.estimate(oracles, *point, None, draw)
            v = v + estimate.value - self.estimator.estimate(oracles, *last, None, draw).value
            u = u + oracles.inner_gradient(*point, sample) - oracles.inner_gradient(*last, sample)
            check_finite(u, "grad_y g", step)
            first = u if index == 0 else first
            last = point
            if index < self.inner_steps:
                point = (point[0], take_step(point[1], u, self.inner_step_size))
        change = (
            accumulate_growth(state, measure_growth(vector_norm(first, dim=-1), vector_norm(u, dim=-1)))
            if is_deterministic(oracles)
            else None
        )
        return {
            "x": point[0],
            "y": point[1],
            "u": u,
            "v": v,
            **describe_estimate(oracles, point[0], estimate, moved, certify=self.certify),
            "growth": change,
        }
