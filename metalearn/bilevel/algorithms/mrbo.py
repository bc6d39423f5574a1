"""MRBO: recursive momentum in a single loop (arXiv 2106.04692)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from metalearn.bilevel.algorithms.base import Algorithm, State, describe_estimate, take_step
from metalearn.bilevel.oracles import Oracles
from metalearn.bilevel.problem import BilevelProblem
from metalearn.bilevel.solvers.growth import check_step_size
from metalearn.checks import check_number, check_whole
from metalearn.errors import ConfigError

__all__ = ["MRBO"]


@dataclass(frozen=True, kw_only=True)
class MRBO(Algorithm):
    """Steps of ``x`` and ``y`` at once, along directions with recursive momentum.

    ``u_k = grad_y G(x_k, y_k; B) + (1 - beta_k)(u_{k-1} - grad_y G(x_{k-1}, y_{k-1}; B))``; ``v_k`` is the same of the
    hypergradient with ``alpha_k``. Each pair is on the same samples. Then ``x <- x - g e_k v_k``, ``y <- y - l e_k u_k`` with
    ``e_k = d/(m + k)^{1/3}``, ``alpha_{k+1} = c1 e_k^2``, ``beta_{k+1} = c2 e_k^2``.

    Attributes:
        estimator: estimates the direction at a point. It has no inner solver; ``StocBiONeumann`` is the usual one.
        step_size: the step size ``g`` of ``x``.
        inner_step_size: the step size ``l`` of ``y``.
        d, m: the constants of the schedule ``e_k``.
        c1: the constant of the momentum of ``v``.
        c2: the constant of the momentum of ``u``.
        inner_size: how many examples the batch of ``u`` has; ``None`` for the stream's own size.

    Example:
        >>> import torch
        >>> from metalearn.bilevel import MRBO, StocBiONeumann, quadratic, run
        >>> problem = quadratic(size=5, outer_size=3, kappa=10.0, seed=0).problem
        >>> algorithm = MRBO(estimator=StocBiONeumann(eta=0.5, Q=10), step_size=1e-3, inner_step_size=0.5)
        >>> solved = run(problem, algorithm, torch.zeros(3, dtype=torch.float64), steps=5)
        >>> [record.step for record in solved.history]
        [1, 2, 3, 4, 5]
    """

    step_size: float
    inner_step_size: float
    d: float = 1.0
    m: float = 1.0
    c1: float = 1.0
    c2: float = 1.0
    inner_size: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("step_size", "inner_step_size", "d", "m", "c1", "c2"):
            check_number(name, getattr(self, name), "use 0.1", above=0, owner="MRBO", loose=True)
        if self.inner_size is not None:
            check_whole(
                "inner_size", self.inner_size, 1, remedy="use None for the size of the stream", owner="MRBO", loose=True
            )
        if self.estimator.inner is not None:
            raise ConfigError(
                f"MRBO(estimator={type(self.estimator).__name__}(inner=...)), but it moves y itself; give an "
                "estimator with inner=None"
            )

    def check(self, problem: BilevelProblem) -> None:
        super().check(problem)
        if problem.constants.L is not None:
            L = problem.constants.L
            check_step_size(
                "MRBO.inner_step_size times the schedule", self.inner_step_size * self.schedule(0), 2 / L, L
            )

    def schedule(self, step: int) -> float:
        """``e_k``."""
        return float(self.d / (self.m + step) ** (1 / 3))

    def extra(self, x: Tensor, y: Tensor) -> State:
        return {"x_before": None, "y_before": None, "u": None, "v": None}

    def advance(self, oracles: Oracles, state: State) -> State:
        x, y, step = state["x"], state["y"], state["step"]
        sample = oracles.sample("inner", step, 0, self.inner_size)
        estimate = self.estimator.estimate(oracles, x, y, None, step)
        u, v = oracles.inner_gradient(x, y, sample), estimate.value
        if state["u"] is not None:
            before = self.schedule(step - 1) ** 2
            alpha, beta = min(1.0, self.c1 * before), min(1.0, self.c2 * before)
            last_x, last_y = state["x_before"], state["y_before"]
            u = u + (1 - beta) * (state["u"] - oracles.inner_gradient(last_x, last_y, sample))
            v = v + (1 - alpha) * (state["v"] - self.estimator.estimate(oracles, last_x, last_y, None, step).value)
        rate = self.schedule(step)
        return {
            "x": take_step(x, v, self.step_size * rate), "y": take_step(y, u, self.inner_step_size * rate),
            "x_before": x, "y_before": y, "u": u, "v": v, **describe_estimate(oracles, x, estimate, v, certify=self.certify),
        }  # fmt: skip
