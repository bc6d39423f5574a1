"""Approximate implicit differentiation."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.linalg import vector_norm

from metalearn.bilevel.adjoint import solve_adjoint
from metalearn.bilevel.certificates import NEEDED, error_bound
from metalearn.bilevel.estimators.base import Estimate, Estimator, check_reach_first, check_result, is_deterministic
from metalearn.bilevel.oracles import Oracles, check_finite
from metalearn.bilevel.problem import Constants
from metalearn.bilevel.solvers.growth import check_growth, measure_growth
from metalearn.bilevel.solvers.indefinite import CGOrMinRes
from metalearn.bilevel.solvers.inner import InnerSolution
from metalearn.bilevel.solvers.linear import LinearSolver
from metalearn.checks import check_kind, check_number
from metalearn.errors import BilevelError, ConfigError

__all__ = ["AID"]

ROUNDS = 60
"""Each round at least halves what is too large of the two residuals."""


@dataclass(frozen=True, kw_only=True)
class AID(Estimator):
    """AID-BiO: ``G = grad_x f - J v`` with ``H v = grad_y f``, at the inner solver's ``y`` (arXiv 2108.00330, chapter 2).

    Attributes:
        inner: the solver of the inner problem; ``None`` to take ``y`` as it is.
        solver: solves the linear system. The default takes ten iterations of conjugate gradients. Where they meet negative
            curvature, as in networks, it goes on by minimal residuals, and says so once in the log. Where ``constants.mu`` is
            known, such curvature is an error.
        tolerance: the largest certified error of ``G``, by :mod:`metalearn.bilevel.certificates`. Inner steps and
            iterations are then chosen so that it holds, whatever numbers ``inner`` and ``solver`` have. Where problems
            share ``x``, each is solved to it.

    Raises, from an estimate:
        BilevelError: from the solvers, or the tolerance was not reached.
        ConfigError: a tolerance without the constants that the certificate is made of.

    Example:
        >>> import torch
        >>> from metalearn.bilevel import AID, GradientDescent, hypergradient, quadratic
        >>> made = quadratic(size=5, outer_size=3, kappa=10.0, seed=0)
        >>> x = torch.ones(3, dtype=torch.float64)
        >>> estimator = AID(inner=GradientDescent(step_size=1.0, steps=20), tolerance=1e-6)
        >>> error = hypergradient(made.problem, x, estimator=estimator).value - made.hypergradient(x)
        >>> bool(torch.linalg.vector_norm(error) <= 1e-6)
        True
    """

    solver: LinearSolver = field(default_factory=lambda: CGOrMinRes(iterations=10))
    tolerance: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_kind("the solver of AID", self.solver, LinearSolver, "use solver=CG(iterations=10), or leave it out")
        if self.tolerance is not None:
            check_number("tolerance", self.tolerance, "use 1e-6", above=0, finite=False, owner="AID", loose=True)
        if self.tolerance is not None and self.inner is None:
            raise ConfigError(
                f"AID(tolerance={self.tolerance}, inner=None), but an inner solver is needed to reach it; use "
                "inner=GradientDescent(...)"
            )

    def check(self, constants: Constants) -> None:
        super().check(constants)
        self.solver.check(constants)

    def estimate(self, oracles: Oracles, x: Tensor, y: Tensor, v: Tensor | None, step: int) -> Estimate:
        if self.tolerance is None:
            return self._estimate_at(oracles, x, self.solve_inner(oracles, x, y, step), v, step, self.solver)
        return self._estimate_to_tolerance(oracles, x, y, v, step, self.tolerance)

    def _estimate_at(
        self, oracles: Oracles, x: Tensor, solved: InnerSolution, v: Tensor | None, step: int, solver: LinearSolver
    ) -> Estimate:
        y = solved.y
        check_finite(y, "y", oracles.outer_step(step))
        outer = oracles.outer_gradient(x, y, oracles.sample("outer", step))
        hessian = oracles.sample("hessian", step)
        here = oracles.linearize(x, y, hessian)
        check_finite(here.gradient, "grad_y g", oracles.outer_step(step))
        # the residual of one batch says nothing of the problem
        residual = vector_norm(here.residual, dim=-1) if is_deterministic(oracles) else None
        if residual is not None and solved.first is not None and self.inner is not None:
            check_growth(solved.first, residual, solved.steps, self.inner.step_size, oracles.outer_step(step))
        with check_reach_first(outer, here):
            solution = solve_adjoint(
                here, outer.of_y, solver, v, caller="AID", about=oracles.problem.inner_loss,
                is_convex=lambda: oracles.constants(x).mu is not None,
            )  # fmt: skip
        jacobian = oracles.sample("jacobian", step)
        if jacobian.data is not hessian.data:
            here = oracles.linearize(x, y, jacobian)
        v = solution.v
        value = (outer.of_x + here.pull_back(v)[0]) / oracles.averages
        check_result(oracles, x, y, outer, value, step, v)
        # a bound on the residual of the system without damping
        dual = solution.residual + solver.damping * vector_norm(v, dim=-1) if solver.damping else solution.residual
        change = measure_growth(solved.first, residual) if solved.first is not None and residual is not None else None
        return Estimate(value, y, v, outer.losses, residual, dual, solved.steps, solution.iterations, change)

    def _estimate_to_tolerance(
        self, oracles: Oracles, x: Tensor, y: Tensor, v: Tensor | None, step: int, tolerance: float
    ) -> Estimate:
        constants = oracles.constants(x)
        mu, l_xy, l_fxy, l_fyy, rho_j, rho_h = constants.need("AID(tolerance=...)", *NEEDED)
        assert self.inner is not None
        length = 0.0 if v is None else float(vector_norm(v, dim=-1).max())
        dual = tolerance * mu / (2 * max(l_xy, 1e-12))
        steps = iterations = 0
        for _ in range(ROUNDS):
            # half of the tolerance goes to each residual
            slope = (l_fxy + rho_j * length + l_xy / mu * (l_fyy + rho_h * length)) / mu
            target = tolerance / (2 * max(slope, 1e-12))
            inner = replace(self.inner, steps=None, tolerance=target)
            solved = replace(self, inner=inner).solve_inner(oracles, x, y, step)
            solver = replace(self.solver, iterations=None, tolerance=dual)
            estimate = self._estimate_at(oracles, x, solved, v, step, solver)
            assert estimate.inner_residual is not None
            assert estimate.dual_residual is not None
            assert estimate.v is not None
            steps, iterations = steps + estimate.inner_steps, iterations + estimate.iterations
            bound = error_bound(constants, estimate.y, estimate.v, estimate.inner_residual, estimate.dual_residual)
            if bool((bound <= tolerance).all()):
                return estimate._replace(inner_steps=steps, iterations=iterations)
            y, v = estimate.y, estimate.v
            longest = float(vector_norm(v, dim=-1).max())
            length = longest if longest > length else 2 * length  # the next target is at most half of this one
        raise BilevelError(
            f"AID certified an error of {float(torch.max(bound)):.3g} at outer step {oracles.outer_step(step)}, but "
            f"tolerance={tolerance:g} was asked for; loosen it, or compute in float64"
        )
