"""Almost no inner loop: only the head adapts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, get_args

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import nn

from metalearn.checks import check_choice, check_number
from metalearn.errors import ConfigError
from metalearn.inner import HeadLearner, Learner, MemoryMode, NormPolicy, UpdateRule
from metalearn.inner.inner_loop import Compilation, ExecutionName, InnerLoop, setting
from metalearn.inner.losses import LossFunction
from metalearn.inner.parts import HEAD_TEXT
from metalearn.inner.solvers import RidgeSolver
from metalearn.inner.step_sizes import InnerLR
from metalearn.inner.task_types import TaskType
from metalearn.modules.episodic.base import MetaModule
from metalearn.modules.episodic.gradient_steps import make_gradient_steps
from metalearn.modules.episodic.joining import join_options
from metalearn.modules.episodic.scores import Metrics
from metalearn.modules.training.outer import Scheduler

__all__ = ["ANIL", "HeadLoop"]

HeadSolver = Literal["gradient", "ridge"]


@dataclass(frozen=True)
class HeadLoop(InnerLoop):
    """The options of :class:`ANIL`."""

    head: str = setting("head", HEAD_TEXT)
    head_solver: HeadSolver = setting(
        "gradient",
        '``"gradient"`` takes inner steps. ``"ridge"`` solves the head, a ``torch.nn.Linear``, by '
        "ridge regression of one-hot labels, and learns a scale (R2-D2).",
        partial(check_choice, choices=get_args(HeadSolver)),
    )
    initial_ridge: float = setting(
        1.0,
        "where the learned ridge penalty starts, beside the mean squared error.",
        partial(check_number, remedy="use 1.0", above=0),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.head_solver == "gradient":
            return
        unused = {
            "inner_lr": isinstance(self.inner_lr, str), "inner_optimizer": self.inner_optimizer != "sgd",
            "inner_weight_decay": bool(self.inner_weight_decay), "inner_clip_norm": self.inner_clip_norm is not None,
            "support_chunk": self.support_chunk is not None, "multi_step_loss": self.multi_step_loss is not None,
        }  # fmt: skip
        for name in (name for name, is_set in unused.items() if is_set):
            raise ConfigError(
                f"{name} is given with head_solver='ridge', but a head that is solved in closed form takes no inner "
                f"steps; leave {name} out, or use head_solver='gradient'"
            )


class ANIL(MetaModule):
    """Almost no inner loop: only the head adapts, on features that are learned (Raghu et al. 2020).

    The inner loop adapts the head ``w`` on features ``z = body(x)``; the outer loop trains body and head. Tensors outside the
    head, such as a scale after it, are outer parameters. With ``w_{m+1} = w_m - inner_lr * grad_w l_S(w_m, z_S)``, the body's
    gradient is the derivative of ``l_Q(w_N, z_Q)`` through both ``z_Q`` and, by way of ``w_N``, ``z_S``. The ridge head is
    that of R2-D2 (Bertinetto et al. 2019).

    Args:
        backbone: any network ``[n, ...] -> [n, ways]`` with a head. Features are computed once per episode where the head
            comes last. Else the whole network runs at every inner step.

    Raises:
        ConfigError: an argument is out of range, or the backbone has no such head.

    Example:
        >>> import torch
        >>> from metalearn import ANIL, MLP, Batch
        >>> module = ANIL(MLP(outputs=5, inputs=8), inner_steps=3, inner_lr=0.1)
        >>> adapted = module.adapt(Batch(torch.randn(10, 8), torch.arange(5).repeat(2)))
        >>> before = module.backbone.state_dict()
        >>> [name for name, value in adapted.params.items() if not value.equal(before[name])]
        ['head.weight', 'head.bias']
    """

    options_class = HeadLoop

    @join_options(HeadLoop)
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
        head: str = "head",
        head_solver: HeadSolver = "gradient",
        initial_ridge: float = 1.0,
        task: TaskType | None = None,
    ) -> None:
        options = HeadLoop.of(locals())
        solves = head_solver == "ridge"
        if solves:
            options = replace(options, inner_steps=1, eval_inner_steps=None)
        super().__init__(
            backbone,
            options,
            learner=partial(HeadLearner, head=head, needed_by="head_solver='ridge'" if solves else None),
            solver=make_ridge_solver if solves else make_gradient_steps,
            outer_optimizer=outer_optimizer,
            outer_scheduler=outer_scheduler,
            metrics=metrics,
        )


def make_ridge_solver(options: InnerLoop, learner: Learner) -> RidgeSolver:
    """The solver of ``head_solver="ridge"``."""
    assert isinstance(options, HeadLoop)
    return RidgeSolver(learner, options.head, options.initial_ridge)
