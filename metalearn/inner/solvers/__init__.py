"""How the inner problem of a task is solved, and what is learned for that, one solver a file."""

from metalearn.inner.solvers.alfa import GeneratedSteps
from metalearn.inner.solvers.base import Costs, TaskSolver
from metalearn.inner.solvers.gradient_steps import GradientMethod, GradientSteps
from metalearn.inner.solvers.learned_loss import LearnedLossSteps
from metalearn.inner.solvers.reptile import ReptileMethod, ReptileSolver
from metalearn.inner.solvers.ridge import RidgeSolver
from metalearn.inner.solvers.solved_head import FittedHead, SolvedHead

__all__ = [
    "Costs",
    "FittedHead",
    "GeneratedSteps",
    "GradientMethod",
    "GradientSteps",
    "LearnedLossSteps",
    "ReptileMethod",
    "ReptileSolver",
    "RidgeSolver",
    "SolvedHead",
    "TaskSolver",
]
