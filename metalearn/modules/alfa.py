"""MAML whose step sizes and decays depend on the task."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import nn

from metalearn.checks import check_number
from metalearn.inner import Learner, MemoryMode, NormPolicy
from metalearn.inner.inner_loop import Compilation, ExecutionName, InnerLoop, setting
from metalearn.inner.losses import LossFunction
from metalearn.inner.solvers import GeneratedSteps
from metalearn.inner.step_sizes import REMEDY
from metalearn.inner.task_types import TaskType
from metalearn.modules.episodic.base import MetaModule
from metalearn.modules.episodic.scores import Metrics
from metalearn.modules.training.outer import Scheduler

__all__ = ["ALFA", "GeneratedLoop"]


@dataclass(frozen=True)
class GeneratedLoop(InnerLoop):
    """The options of :class:`ALFA`."""

    inner_lr: float = setting(
        0.4,
        "where the step sizes start. Each step and tensor learns its own.",
        partial(check_number, remedy=REMEDY, above=0),
    )


class ALFA(MetaModule):
    """MAML with step sizes and decays that a small network generates from the task (Baik et al. 2020).

    A step is ``w_{j+1} = b_j w_j - a_j grad l_S(w_j)``. Each tensor of the network has its own ``a_j`` and ``b_j``. They are a
    learned number for the step and the tensor, times what an MLP makes of the means of all tensors' gradients and weights. The
    last layer of that MLP starts at 0, so that training starts as that of MAML.

    Args:
        backbone: any network ``[n, ...] -> [n, ways]``. Its batch normalisation is that of one task, as ``norm`` says.

    Raises:
        ConfigError: an argument is out of range.

    Example:
        >>> import torch
        >>> from metalearn import ALFA, MLP, Batch
        >>> module = ALFA(MLP(outputs=5, inputs=8), inner_steps=3, inner_lr=0.1)
        >>> adapted = module.adapt(Batch(torch.randn(10, 8), torch.arange(5).repeat(2)))
        >>> adapted(torch.randn(4, 8)).shape
        torch.Size([4, 5])
    """

    options_class = GeneratedLoop

    def __init__(
        self,
        backbone: nn.Module,
        inner_steps: int = 5,
        inner_lr: float = 0.4,
        first_order: bool = False,
        eval_inner_steps: int | None = None,
        loss: LossFunction = "cross_entropy",
        execution: ExecutionName = "auto",
        memory: MemoryMode = "store",
        norm: NormPolicy = "transductive",
        outer_optimizer: OptimizerCallable = lambda params: torch.optim.Adam(params, lr=1e-3),
        outer_scheduler: Scheduler = None,
        support_chunk: int | None = None,
        multi_step_loss: int | None = None,
        tasks_at_once: int | None = None,
        memory_limit: float | None = None,
        compile: Compilation = False,
        kernels: bool = True,
        metrics: Metrics = None,
        task: TaskType | None = None,
    ) -> None:
        super().__init__(
            backbone,
            GeneratedLoop.of(locals()),
            solver=make_generated_steps,
            outer_optimizer=outer_optimizer,
            outer_scheduler=outer_scheduler,
            metrics=metrics,
        )


def make_generated_steps(options: InnerLoop, learner: Learner) -> GeneratedSteps:
    """The solver of :class:`ALFA`."""
    return GeneratedSteps(options, learner)
