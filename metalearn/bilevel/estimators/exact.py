"""The implicit hypergradient by a dense solve, for small inner problems and as a reference."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.linalg import vector_norm

from metalearn.bilevel.estimators.base import Estimate, Estimator, check_reach, check_result, is_deterministic
from metalearn.bilevel.oracles import Oracles, check_finite
from metalearn.checks import UNBOUNDED, check_whole
from metalearn.errors import BilevelError, ConfigError

__all__ = ["Exact"]


@dataclass(frozen=True, kw_only=True)
class Exact(Estimator):
    """``G = grad_x f - J H^-1 grad_y f`` by a Cholesky factor of the whole ``H``, from ``D`` products.

    Attributes:
        inner: the solver of the inner problem; ``None`` to take ``y`` as it is.
        largest: how many entries ``y`` may have before it is an error.

    Raises, from an estimate:
        BilevelError: ``H`` is not positive definite.
        ConfigError: ``y`` has more than ``largest`` entries.

    Example:
        >>> import torch
        >>> from metalearn.bilevel import Exact, GradientDescent, hypergradient, quadratic
        >>> made = quadratic(size=5, outer_size=3, kappa=10.0, seed=0)
        >>> x = torch.ones(3, dtype=torch.float64)
        >>> estimator = Exact(inner=GradientDescent(step_size=1.0, steps=200))
        >>> value = hypergradient(made.problem, x, estimator=estimator).value
        >>> torch.allclose(value, made.hypergradient(x))
        True
    """

    largest: int = 4096

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("largest", self.largest, 1, UNBOUNDED, "use 4096", owner="Exact", loose=True)

    def estimate(self, oracles: Oracles, x: Tensor, y: Tensor, v: Tensor | None, step: int) -> Estimate:
        size = y.shape[-1]
        if size > self.largest:
            raise ConfigError(
                f"y has {size} entries, but Exact(largest={self.largest}) solves a dense system; use "
                "AID(solver=CG(...))"
            )
        solved = self.solve_inner(oracles, x, y, step)
        y = solved.y
        check_finite(y, "y", oracles.outer_step(step))
        outer = oracles.outer_gradient(x, y, oracles.sample("outer", step))
        here = oracles.linearize(x, y, oracles.sample("hessian", step))
        units = torch.eye(size, dtype=y.dtype, device=y.device)
        matrix = torch.stack([here.hvp(unit.expand_as(y)) for unit in units], -1)
        check_finite(here.gradient, "grad_y g", oracles.outer_step(step))
        check_finite(matrix, "grad_yy g", oracles.outer_step(step))
        matrix = (matrix + matrix.mT) / 2
        factor, info = torch.linalg.cholesky_ex(matrix)
        if bool(info.any()):
            check_reach(outer, here)
            smallest = float(torch.linalg.eigvalsh(matrix).min())
            raise BilevelError(
                f"inner_loss has the curvature {smallest:.3g}, but it must be strongly convex in y; add l2 "
                "regularisation, solve the inner problem further, or use AID(), which falls back, or ITD"
            )
        v = torch.cholesky_solve(outer.of_y.unsqueeze(-1), factor).squeeze(-1)
        value = (outer.of_x + here.pull_back(v)[0]) / oracles.averages
        check_result(oracles, x, y, outer, value, step, v)
        residual = vector_norm((matrix * v.unsqueeze(-2)).sum(-1) - outer.of_y, dim=-1)
        return Estimate(
            value,
            y,
            v,
            outer.losses,
            vector_norm(here.residual, dim=-1),
            residual,
            solved.steps,
            size,
            solved.growth if is_deterministic(oracles) else None,
        )
