"""Proximal AID-BiO: ``min_x Phi(x) + h(x)`` with a simple convex ``h`` (arXiv 2203.16615)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from metalearn.bilevel.algorithms.base import (
    Algorithm,
    State,
    accumulate_growth,
    check_below_smoothness,
    describe_estimate,
    take_step,
)
from metalearn.bilevel.oracles import Oracles
from metalearn.bilevel.problem import BilevelProblem
from metalearn.bilevel.solvers.prox import Prox
from metalearn.checks import check_function, check_number

__all__ = ["ProximalBiO"]


@dataclass(frozen=True, kw_only=True)
class ProximalBiO(Algorithm):
    """``z = x + m (x - x_before); x <- prox_{b h}(z - b G(z))``, with ``y`` and ``v`` where the last step's ended.

    The state's ``norm`` is that of the gradient mapping ``|z - x|/b``, 0 at a solution.

    Attributes:
        estimator: how the hypergradient is estimated. The paper takes ``AID``.
        prox: the proximal operator of ``h``. Where ``x`` has a leading axis of problems, each is shrunk by itself.
        step_size: the step size ``b`` of ``x``.
        momentum: the momentum ``m``, at least 0 and below 1; ``None`` for ``k/(k + 3)`` at step ``k`` (Nesterov 1983).

    Example:
        >>> import torch
        >>> from metalearn.bilevel import AID, BilevelProblem, Box, GradientDescent, ProximalBiO, run
        >>> problem = BilevelProblem(
        ...     outer_loss=lambda x, y, batch: (y - 3).square().sum() / 2,
        ...     inner_loss=lambda x, y, batch: (y - x).square().sum() / 2,
        ...     init_inner=torch.zeros_like,
        ... )
        >>> estimator = AID(inner=GradientDescent(step_size=1.0, steps=1))
        >>> algorithm = ProximalBiO(estimator=estimator, prox=Box(-1.0, 2.0), step_size=1.0)
        >>> run(problem, algorithm, torch.zeros(1), steps=2).x  # 3 is outside of the box
        tensor([2.])
    """

    prox: Prox
    step_size: float
    momentum: float | None = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("step_size", self.step_size, "use 0.1", above=0, owner="ProximalBiO", loose=True)
        check_function("the prox of ProximalBiO", self.prox, "use L1(0.01)", "a Prox")
        if self.momentum is not None:
            check_number(
                "momentum", self.momentum, "use 0.9 or None", least=0, below=1, owner="ProximalBiO", loose=True
            )

    def check(self, problem: BilevelProblem) -> None:
        super().check(problem)
        check_below_smoothness("ProximalBiO", "step_size", self.step_size, problem)

    def extra(self, x: Tensor, y: Tensor) -> State:
        return {"x_before": x.clone(), "v": None}

    def advance(self, oracles: Oracles, state: State) -> State:
        x, step = state["x"], state["step"]
        momentum = step / (step + 3) if self.momentum is None else self.momentum
        z = x + momentum * (x - state["x_before"])
        estimate = self.estimator.estimate(oracles, z, state["y"], state["v"], step)
        moved = self._shrink(oracles, take_step(z, estimate.value, self.step_size))
        mapping = torch.linalg.vector_norm(z - moved) / self.step_size
        return {
            "x": moved,
            "x_before": x,
            "y": estimate.y,
            "v": estimate.v,
            **describe_estimate(oracles, z, estimate, certify=self.certify),
            "norm": mapping,
            "growth": accumulate_growth(state, estimate.growth),
        }

    def _shrink(self, oracles: Oracles, x: Tensor) -> Tensor:
        """Return ``prox_{b h}(x)`` of each problem."""

        def shrink_vector(x: Tensor) -> Tensor:
            leaves = [leaf.reshape(-1) for leaf in tree_leaves(self.prox(oracles.x.unravel(x), self.step_size))]
            return leaves[0] if len(leaves) == 1 else torch.cat(leaves)

        return torch.func.vmap(shrink_vector)(x) if x.ndim > 1 else shrink_vector(x)
