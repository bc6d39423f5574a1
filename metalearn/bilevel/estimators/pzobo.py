"""Hessian-free estimation: the response of the inner solver to random changes of x."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metalearn.bilevel.estimators.base import Estimate, Estimator, bind_inner_gradient, check_result, is_deterministic
from metalearn.bilevel.oracles import Oracles, check_finite
from metalearn.bilevel.streams import Draw
from metalearn.bilevel.trees import dot
from metalearn.checks import check_number, check_whole
from metalearn.errors import ConfigError

__all__ = ["PZOBO"]


@dataclass(frozen=True, kw_only=True)
class PZOBO(Estimator):
    """PZOBO: how the inner solver's end responds to random changes of ``x`` (arXiv 2110.07004).

    ``G = grad_x f + (1/Q) sum_j u_j <(y_N(x + mu u_j) - y_N(x)) / mu, grad_y f>`` with ``u_j ~ N(0, I)``. All runs start at the
    same ``y``, and with a stream they see the same batches, which is PZOBO-S.

    Where ``y_N`` is affine in ``x``, the response term is unbiased for any ``mu``. Its relative mean squared error is then
    ``(p + 1)/Q`` for ``p`` entries of ``x``. The runs are made without autocast, in which their differences would be rounding.

    Attributes:
        inner: the solver of the inner problem, whose runs are compared.
        mu: how far ``x`` is changed, in units of ``x``.
        Q: how many directions ``x`` is changed in.
        at_once: how many directions ``torch.func.vmap`` runs together, where there is no axis of problems yet. 1 runs
            one after the other, in the memory of one.

    Example:
        >>> import torch
        >>> from metalearn.bilevel import PZOBO, GradientDescent, hypergradient, quadratic
        >>> problem = quadratic(size=5, outer_size=3, kappa=10.0, seed=0).problem
        >>> estimator = PZOBO(inner=GradientDescent(step_size=1.0, steps=20), Q=10)
        >>> result = hypergradient(problem, torch.ones(3, dtype=torch.float64), estimator=estimator)
        >>> result.value.shape, result.diagnostics.counts.hvp
        (torch.Size([3]), 0)
    """

    mu: float = 0.01
    Q: int = 1
    at_once: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.inner is None:
            raise ConfigError(
                "PZOBO(inner=None), but it compares runs of an inner solver; use inner=GradientDescent(...)"
            )
        check_number("mu", self.mu, "use 0.01", above=0, owner="PZOBO", loose=True)
        check_whole("Q", self.Q, 1, remedy="use 10", owner="PZOBO", loose=True)
        check_whole("at_once", self.at_once, 1, remedy="use 1", owner="PZOBO", loose=True)
        for name in ("Q", "at_once"):
            object.__setattr__(self, name, int(getattr(self, name)))  # range(3.0) would raise

    def estimate(self, oracles: Oracles, x: Tensor, y: Tensor, v: Tensor | None, step: int) -> Estimate:
        assert self.inner is not None
        start = y.detach()
        with _disable_autocast(x):
            solved = self.solve_inner(oracles, x, start, step)
        y, steps = solved.y, solved.steps
        check_finite(y, "y", oracles.outer_step(step))
        outer = oracles.outer_gradient(x, y, oracles.sample("outer", step))
        response = torch.zeros_like(x)
        for first in range(0, self.Q, self.at_once):
            numbers = range(first, min(first + self.at_once, self.Q))
            directions = torch.stack([self.direction(oracles, x, step, number) for number in numbers])
            with _disable_autocast(x):
                ends, taken = self._run_all(oracles, x, start, directions, step)
            steps += taken
            along = dot(ends - y, outer.of_y) / self.mu  # [directions], or [directions, B]
            if oracles.problem.shared_x:
                response = response + (along.reshape(len(numbers), -1).sum(1, keepdim=True) * directions).sum(0)
            else:
                response = response + (along.unsqueeze(-1) * directions.unsqueeze(1)).sum(0)
        value = (outer.of_x + response / self.Q) / oracles.averages
        check_result(oracles, x, y, outer, value, step)
        return Estimate(
            value, y, None, outer.losses, inner_steps=steps, growth=solved.growth if is_deterministic(oracles) else None
        )

    def _run_all(self, oracles: Oracles, x: Tensor, start: Tensor, directions: Tensor, step: int) -> tuple[Tensor, int]:
        """Where the inner solver ends from each changed ``x``, ``[directions, ..., D]``, and the steps of all."""
        assert self.inner is not None
        if oracles.problem.batched is not None or self.at_once == 1:
            runs = [
                self.inner.solve(bind_inner_gradient(oracles, x + self.mu * u, step), start, oracles.outer_step(step))
                for u in directions
            ]
            return torch.stack([run.y for run in runs]), sum(run.steps for run in runs)
        many = oracles.repeat(len(directions))
        run = self.inner.solve(
            bind_inner_gradient(many, x + self.mu * directions, step),
            start.expand(len(directions), -1),
            oracles.outer_step(step),
        )
        return run.y, run.steps * len(directions)

    def direction(self, oracles: Oracles, x: Tensor, step: int, index: int) -> Tensor:
        """``u`` ``[P]``, the same for all problems."""
        generator = Draw(oracles.seed, step, "direction", index).generator()
        return torch.randn(x.shape[-1], generator=generator, dtype=x.dtype).to(x.device)


def _disable_autocast(x: Tensor) -> torch.autocast:
    """Without autocast: a difference of runs of which 8 bits are kept is rounding."""
    return torch.autocast(x.device.type, enabled=False)
