"""How one task is adapted, and how many are at once."""

from metalearn.inner.adaptation import Adaptation
from metalearn.inner.adapted import AdaptedModel
from metalearn.inner.execution import MetaLoss, Schedule, evaluate, sequential, vectorized
from metalearn.inner.learner import HeadLearner, Learner, evaluating
from metalearn.inner.norm import NormPolicy, TaskBatchNorm, own_batch_norm, statistics
from metalearn.inner.probe import find_inexactness
from metalearn.inner.rules import get_rule, sgd
from metalearn.inner.unroll import last, unroll

__all__ = [
    "Adaptation",
    "AdaptedModel",
    "HeadLearner",
    "Learner",
    "MetaLoss",
    "NormPolicy",
    "Schedule",
    "TaskBatchNorm",
    "evaluate",
    "evaluating",
    "find_inexactness",
    "get_rule",
    "last",
    "own_batch_norm",
    "sequential",
    "sgd",
    "statistics",
    "unroll",
    "vectorized",
]
