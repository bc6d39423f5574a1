"""Prototypical networks: the nearest class mean, on features that are learned for it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import nn

from metalearn.checks import MOST_STEPS, check_whole
from metalearn.inner import HeadLearner, Learner, NormPolicy
from metalearn.inner.inner_loop import Compilation, ExecutionName, InnerLoop, optional, setting
from metalearn.inner.losses import LossFunction
from metalearn.inner.parts import HEAD_TEXT
from metalearn.inner.soft_means import EVAL_REFINEMENTS_TEXT, REFINEMENTS_TEXT, SoftMeansLearner, check_company
from metalearn.inner.solvers import FittedHead
from metalearn.inner.solvers.prototypes import fit_prototypes
from metalearn.modules.episodic.base import MetaModule
from metalearn.modules.episodic.scores import Metrics
from metalearn.modules.training.outer import Scheduler

__all__ = ["ProtoNet", "PrototypeLoop"]


@dataclass(frozen=True)
class PrototypeLoop(InnerLoop):
    """The options of :class:`ProtoNet`."""

    inner_steps: int = setting(1, "class means are there after one step.")
    head: str = setting("head", HEAD_TEXT)
    refinements: int = setting(0, REFINEMENTS_TEXT, partial(check_whole, least=0, most=MOST_STEPS))
    eval_refinements: int | None = setting(
        None, EVAL_REFINEMENTS_TEXT, optional(partial(check_whole, least=0, most=MOST_STEPS))
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_company(self.refinements, self.norm)
        check_company(self.eval_refinements or 0, self.norm, "eval_refinements")

    @property
    def rounds_in_evaluation(self) -> int:
        """How often class means move in validation, test and prediction."""
        return self.refinements if self.eval_refinements is None else self.eval_refinements


class ProtoNet(MetaModule):
    """Classify by the nearest class mean of the support set's features, which are learned (Snell et al. 2017).

    The features ``z`` are what the network's head gets. With ``c_k`` the mean of class ``k``, the probability of that class is
    the softmax of ``-|z - c_k|^2``. A linear head computes just that, so adaptation sets the head, and takes no inner steps.
    The head's own weights are neither used nor trained, and a task may have any number of classes.

    With ``refinements`` the queries of a task move its class means: each belongs to a class by that softmax, and the means are
    taken anew, of the support examples and of so much of each query (Ren et al. 2018). Training goes through all of it, and
    ``eval_refinements`` alone leaves training as it is. Then the answer to a query depends on those that come with it;
    ``independent()`` leaves the means where they are.

    Before training, ``test`` gives the accuracy of class means on the features of any network.

    Args:
        backbone: any network ``[n, ...] -> [n, ways]`` whose last layer is a ``torch.nn.Linear`` with a bias.

    Raises:
        ConfigError: an argument is out of range, or the backbone has no such head.

    Example:
        >>> import torch
        >>> from metalearn import MLP, Batch, ProtoNet
        >>> module = ProtoNet(MLP(outputs=5, inputs=8))
        >>> support = Batch(torch.randn(14, 8), torch.arange(7).repeat(2))
        >>> module.adapt(support, ways=7)(torch.randn(4, 8)).shape
        torch.Size([4, 7])
    """

    options_class = PrototypeLoop

    def __init__(
        self,
        backbone: nn.Module,
        head: str = "head",
        loss: LossFunction = "cross_entropy",
        execution: ExecutionName = "auto",
        norm: NormPolicy = "transductive",
        outer_optimizer: OptimizerCallable = lambda params: torch.optim.Adam(params, lr=1e-3),
        outer_scheduler: Scheduler = None,
        tasks_at_once: int | None = None,
        memory_limit: float | None = None,
        compile: Compilation = False,
        kernels: bool = True,
        metrics: Metrics = None,
        refinements: int = 0,
        eval_refinements: int | None = None,
    ) -> None:
        options = PrototypeLoop.of(locals())
        rounds, eval_rounds = options.refinements, options.rounds_in_evaluation
        moves = partial(SoftMeansLearner, rounds=rounds, eval_rounds=eval_rounds, scale=1.0)
        super().__init__(
            backbone,
            options,
            learner=partial(moves if rounds or eval_rounds else HeadLearner, head=head, needed_by="ProtoNet"),
            solver=make_prototype_solver,
            outer_optimizer=outer_optimizer,
            outer_scheduler=outer_scheduler,
            metrics=metrics,
        )


def make_prototype_solver(options: InnerLoop, learner: Learner) -> FittedHead:
    """The solver of :class:`ProtoNet`."""
    assert isinstance(options, PrototypeLoop)
    return FittedHead(learner, options.head, fit_prototypes, "ProtoNet")
