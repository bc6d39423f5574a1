"""The baseline that meta-learning is measured against: the same network trained on all tasks pooled."""

from __future__ import annotations

from dataclasses import replace

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import nn

from metalearn.episode import Episode
from metalearn.inner import MemoryMode, MetaLoss, NormPolicy, UpdateRule, own_kernels
from metalearn.inner.inner_loop import Compilation, ExecutionName, InnerLoop
from metalearn.inner.losses import LossFunction
from metalearn.inner.step_sizes import InnerLR
from metalearn.inner.task_types import TaskType
from metalearn.modules.episodic.base import MetaModule
from metalearn.modules.episodic.joining import join_options
from metalearn.modules.episodic.scores import Metrics
from metalearn.modules.training.outer import Scheduler

__all__ = ["Pooled"]


class Pooled(MetaModule):
    """Train one network on all examples of all tasks, without adaptation, and evaluate it as MAML does.

    This is the "pretrained" baseline of Finn et al. 2017 for regression. For classification it is at chance by design:
    the labels of an episode mean nothing outside of it.

    Example:
        >>> import torch
        >>> from metalearn import MLP, Batch, Pooled
        >>> module = Pooled(MLP(), loss="mse", inner_lr=0.01)
        >>> x = torch.linspace(-5, 5, 10).unsqueeze(1)
        >>> module.adapt(Batch(x, x.sin()))(torch.zeros(4, 1)).shape
        torch.Size([4, 1])
    """

    @join_options(InnerLoop)
    def __init__(
        self,
        backbone: nn.Module,
        inner_steps: int = 5,
        inner_lr: InnerLR = 0.4,
        first_order: bool = False,
        eval_inner_steps: int | None = None,
        loss: LossFunction = "cross_entropy",
        inner_optimizer: str | UpdateRule = "sgd",
        execution: ExecutionName = "auto",
        memory: MemoryMode = "store",
        norm: NormPolicy = "transductive",
        initial_inner_lr: float = 0.1,
        outer_optimizer: OptimizerCallable = lambda params: torch.optim.Adam(params, lr=1e-3),
        outer_scheduler: Scheduler = None,
        inner_weight_decay: float = 0.0,
        inner_clip_norm: float | None = None,
        support_chunk: int | None = None,
        multi_step_loss: int | None = None,
        tasks_at_once: int | None = None,
        memory_limit: float | None = None,
        compile: Compilation = False,
        kernels: bool = True,
        metrics: Metrics = None,
        task: TaskType | None = None,
    ) -> None:
        options = InnerLoop.of(locals())
        super().__init__(
            backbone,
            options,
            outer_optimizer=outer_optimizer,
            outer_scheduler=outer_scheduler,
            metrics=metrics,
            loss_order=1,
        )

    def meta_loss(self, episode: Episode, ways: int | None = None) -> MetaLoss:
        """The mean loss over all examples, before adaptation, and the query outputs ``[B, n, N]``."""
        support, query = episode
        tasks, n = query.y.shape[:2]
        x, y = torch.cat([support.x, query.x], 1), torch.cat([support.y, query.y], 1)
        adaptation = replace(self.adaptation, ways=ways)
        with adaptation.learner.as_given().running() as learner, own_kernels():
            outputs = learner.support_logits(learner.outer(), x.flatten(0, 1))
        loss = adaptation.task_loss({}, outputs, y.flatten(0, 1))
        return MetaLoss(loss, outputs.detach().unflatten(0, (tasks, -1))[:, -n:])
