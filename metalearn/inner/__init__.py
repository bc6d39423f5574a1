"""How one task is adapted, and how many are at once."""

from metalearn.inner.adaptation import Adaptation, InnerMethod
from metalearn.inner.adapted import AdaptedModel
from metalearn.inner.ambient import own_kernels, recording, statistics
from metalearn.inner.execution.meta_loss import MetaLoss, evaluate, meta_loss
from metalearn.inner.execution.plan import Plan
from metalearn.inner.execution.probe import Probe
from metalearn.inner.execution.schedule import Schedule
from metalearn.inner.execution.way import Way
from metalearn.inner.head import FeatureLearner, HeadLearner
from metalearn.inner.inner_loop import InnerLoop
from metalearn.inner.learner import Learner, evaluating
from metalearn.inner.losses import Loss, ModuleLoss
from metalearn.inner.memory import MEMORY_MODES, MemoryMode
from metalearn.inner.norm.policies import NormPolicy
from metalearn.inner.norm.step_statistics import StepStatistics
from metalearn.inner.norm.task_norm import TaskBatchNorm, TaskNorm
from metalearn.inner.rules import RULES, SGD, Adam, AdamW, Momentum, UpdateRule, get_rule
from metalearn.inner.solvers import GradientSteps, RidgeSolver, TaskSolver

__all__ = [
    "MEMORY_MODES",
    "RULES",
    "SGD",
    "Adam",
    "AdamW",
    "Adaptation",
    "AdaptedModel",
    "FeatureLearner",
    "GradientSteps",
    "HeadLearner",
    "InnerLoop",
    "InnerMethod",
    "Learner",
    "Loss",
    "MemoryMode",
    "MetaLoss",
    "ModuleLoss",
    "Momentum",
    "NormPolicy",
    "Plan",
    "Probe",
    "RidgeSolver",
    "Schedule",
    "StepStatistics",
    "TaskBatchNorm",
    "TaskNorm",
    "TaskSolver",
    "UpdateRule",
    "Way",
    "evaluate",
    "evaluating",
    "get_rule",
    "meta_loss",
    "own_kernels",
    "recording",
    "statistics",
]
