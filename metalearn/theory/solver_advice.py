"""What the inner and linear solvers of a bilevel problem need: stable step sizes, and the steps to a tolerance."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from metalearn.bilevel import Algorithm, BilevelProblem, Constants, inner_steps
from metalearn.bilevel.trees import Tree
from metalearn.checks import MOST_STEPS, UNBOUNDED, check_number, check_whole
from metalearn.errors import ConfigError
from metalearn.modules.problem_based.core import BilevelCore
from metalearn.theory.problem_constants import measure_curvature
from metalearn.theory.quadratics import best_step, contraction, heavy_ball_contraction, inner_step_limit

__all__ = ["SolverAdvice", "advise_solvers"]


@dataclass(frozen=True)
class SolverAdvice:
    """What was measured about the inner problem, and what follows for its solvers.

    Steps are those that make an error ``1/tolerance`` times smaller, on a quadratic with these constants. ``mu`` is measured from
    above, so that on ill-conditioned problems more may be needed; raise ``iterations`` to measure it better. All but ``stable``
    and ``neumann`` are ``None`` where ``mu`` is not above 0.

    Attributes:
        step: the outer step.
        mu: the smallest eigenvalue of ``grad_yy g``.
        L: the largest eigenvalue of ``grad_yy g``.
        tolerance: the share of the first error that may be left.
        fault: what is wrong with the solvers in use, and the remedy, in one line; ``None`` for nothing.

    Example:
        >>> from metalearn.theory import SolverAdvice
        >>> advice = SolverAdvice(step=0, mu=0.5, L=2.0, tolerance=1e-3)
        >>> advice.stable, advice.fastest, advice.inner_steps, advice.cg_iterations, advice.neumann_terms
        (1.0, 0.8, 14, 7, 24)
    """

    step: int
    mu: float
    L: float
    tolerance: float
    fault: str | None = None

    @property
    def stable(self) -> float:
        """``2/L``: from here on gradient steps, and the Neumann series, diverge."""
        return inner_step_limit(L=self.L) if self.L > 0 else math.inf

    @property
    def neumann(self) -> float:
        """``1/L``: up to here the terms of the Neumann series have one sign, as stocBiO asks for."""
        return 1 / self.L if self.L > 0 else math.inf

    @property
    def is_convex(self) -> bool:
        """Whether ``mu`` is above 0."""
        return self.mu > 0

    @property
    def fastest(self) -> float | None:
        """``2/(L + mu)``: the step size of the fastest gradient descent."""
        return best_step(mu=self.mu, L=self.L) if self.is_convex else None

    @property
    def inner_steps(self) -> int | None:
        """The steps of gradient descent of that size."""
        if self.fastest is None:
            return None
        return inner_steps(contraction(mu=self.mu, L=self.L, step_size=self.fastest), 1 / self.tolerance)

    @property
    def cg_iterations(self) -> int | None:
        """The iterations of conjugate gradients."""
        if not self.is_convex:
            return None
        return inner_steps(heavy_ball_contraction(mu=self.mu, L=self.L), 2 / self.tolerance)

    @property
    def neumann_terms(self) -> int | None:
        """The products ``Q`` of the Neumann series of step size ``1/L``."""
        return inner_steps(1 - self.mu / self.L, 1 / self.tolerance) - 1 if self.is_convex else None

    @property
    def parts(self) -> list[str]:
        """What is measured, and what it asks for, a clause each."""
        measured = f"inner problem: mu {self.mu:.3g}, L {self.L:.3g}"
        if not self.is_convex:
            return [measured, f"gradient steps diverge from {self.stable:.3g} on"]
        return [
            f"{measured}, condition number {self.L / self.mu:.3g}",
            f"gradient steps: stable below {self.stable:.3g}, fastest at {self.fastest:.3g}; "
            f"Neumann steps: up to {self.neumann:.3g}",
            f"to {self.tolerance:g} of an error: {self.inner_steps} gradient steps, {self.cg_iterations} of CG or "
            f"{self.neumann_terms} Neumann terms",
        ]

    def __str__(self) -> str:
        """One line of all parts."""
        return "; ".join(self.parts)

    def as_dict(self) -> dict[str, float]:
        """The values to log, without their prefix."""
        values = {"mu": self.mu, "L": self.L, "stable": self.stable, "fastest": self.fastest, "inner_steps": self.inner_steps,
                  "cg_iterations": self.cg_iterations, "neumann_terms": self.neumann_terms}  # fmt: skip
        return {name: float(value) for name, value in values.items() if value is not None and math.isfinite(value)}


def advise_solvers(
    problem: BilevelProblem | BilevelCore,
    x: Tree | None = None,
    y: Tree | None = None,
    algorithm: Algorithm | None = None,
    tolerance: float = 1e-3,
    step: int = 0,
    iterations: int = 20,
    seed: int = 0,
) -> SolverAdvice:
    """Measure the curvature of an inner problem at a point, and say what its solvers need.

    Args:
        problem: the problem; or a module that solves one, at its own ``x`` and ``y``.
        x: the outer variables; ``None`` for those of the module.
        y: the inner variables; ``None`` for those of the module, or for where the inner solver starts.
        algorithm: whose step sizes are held against the stable range; ``None`` for that of the module, or for none.
        tolerance: the share of the first error that may be left.
        step: the outer step, to be written down.
        iterations: the most Hessian-vector products.
        seed: of the start of these iterations, and of the batch where data are drawn.

    Raises:
        BilevelError: an operation has no second derivative.
        ConfigError: there is no ``x``, or a number is out of range.
        ShapeError: the trees do not fit together.

    Example:
        >>> import torch
        >>> from metalearn.bilevel import AID, BiO, GradientDescent, quadratic
        >>> from metalearn.theory import advise_solvers
        >>> problem = quadratic(size=5, outer_size=3, kappa=10.0, seed=0).problem
        >>> algorithm = BiO(estimator=AID(inner=GradientDescent(step_size=3.0, steps=5)), step_size=0.1)
        >>> advise_solvers(problem, torch.zeros(3, dtype=torch.float64), algorithm=algorithm).fault
        'GradientDescent.step_size is 3, but with L = 1 it must be below 2, where the method starts to diverge; use 1 (1/L)'
    """
    check_number("tolerance", tolerance, "use 0.001", above=0, below=1)
    check_whole("step", step, 0, UNBOUNDED)
    check_whole("iterations", iterations, 1, MOST_STEPS)
    check_whole("seed", seed, 0, UNBOUNDED)
    mu, L = measure_curvature(problem, x, y, iterations, 1e-3, seed)
    if isinstance(problem, BilevelCore):
        algorithm = problem.algorithm if algorithm is None else algorithm
        problem = problem.problem
    return SolverAdvice(step, mu, L, tolerance, _find_fault(problem, algorithm, mu, L))


def _find_fault(problem: BilevelProblem, algorithm: Algorithm | None, mu: float, L: float) -> str | None:
    """What is wrong with a problem and its solvers at the measured constants."""
    if not mu > 0:
        return (
            f"grad_yy g has the eigenvalue {mu:.3g}, but hypergradients need an inner loss that is strongly convex in y; add l2 "
            "regularisation to it"
        )
    try:
        if algorithm is not None:
            algorithm.check(replace(problem, constants=Constants(mu=min(mu, L), L=L)))
    except ConfigError as error:  # it is said, and the run goes on
        return str(error)
    return None
