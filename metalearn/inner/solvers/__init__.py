"""How the inner problem of a task is solved, and what is learned for that, one solver a file."""

from metalearn.inner.solvers.base import Costs, TaskSolver
from metalearn.inner.solvers.gradient_steps import GradientMethod, GradientSteps
from metalearn.inner.solvers.ridge import RidgeMethod, RidgeSolver

__all__ = ["Costs", "GradientMethod", "GradientSteps", "RidgeMethod", "RidgeSolver", "TaskSolver"]
