"""Model-agnostic meta-learning."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import nn

from metalearn.inner import Adapter, MemoryMode, NormPolicy, UpdateRule, make_learner
from metalearn.inner.adapters import get_adapter
from metalearn.inner.inner_loop import Compilation, ExecutionName, InnerLoop, optional, setting
from metalearn.inner.losses import LossFunction
from metalearn.inner.parts import Patterns, check_patterns
from metalearn.inner.step_sizes import InnerLR
from metalearn.inner.task_types import TaskType
from metalearn.modules.episodic.base import MetaModule
from metalearn.modules.episodic.joining import join_options
from metalearn.modules.episodic.scores import Metrics
from metalearn.modules.training.outer import Scheduler

__all__ = ["MAML", "PartLoop"]


@dataclass(frozen=True)
class PartLoop(InnerLoop):
    """The options of :class:`MAML`."""

    adapts: Patterns | None = setting(
        None,
        "what the inner loop moves: a tensor's or a submodule's name, a pattern such as ``'layer4.*'``, or ``\"head\"``, "
        '``"body"``, ``"norm"``, ``"bias"`` or ``"all"``. A list joins several, and ``!`` takes out. ``None`` is all, or the '
        "adapter alone.",
        optional(check_patterns),
    )
    adapter: Adapter | None = setting(
        None,
        "what moves in the place of weights, or where the head starts: a ``LoRA``, ``Context``, ``SharedHead`` or "
        "``PrototypeHead``.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "adapter", get_adapter(self.adapter))

    def hyper_parameters(self) -> dict[str, Any]:
        values = super().hyper_parameters()
        return values if self.adapter is None else {**values, "adapter": self.adapter.describe()}


class MAML(MetaModule):
    """Multi-step MAML: learn an initialisation that a few gradient steps adapt to a new task (Finn et al. 2017).

    With support loss ``l_S``, query loss ``l_Q`` and ``w_{j+1} = w_j - inner_lr * grad l_S(w_j)``, the meta-gradient of
    ``l_Q(w_N)`` is ``prod_j (I - inner_lr * H_j) grad l_Q(w_N)`` with ``H_j`` the Hessian of ``l_S`` at ``w_j``;
    ``first_order=True`` drops the product (FOMAML).

    With ``adapts`` only a part of ``w`` moves. ``"head"`` is ANIL (Raghu et al. 2020), ``"body"`` is BOIL (Oh et al. 2021).

    Raises:
        ConfigError: an argument is out of range.

    Example:
        >>> import torch
        >>> from metalearn import MAML, MLP, Batch
        >>> module = MAML(MLP(outputs=5, inputs=8), inner_steps=3, inner_lr=0.1)
        >>> support = Batch(torch.randn(10, 8), torch.arange(5).repeat(2))
        >>> adapted = module.adapt(support)
        >>> adapted(torch.randn(4, 8)).shape
        torch.Size([4, 5])
    """

    options_class = PartLoop

    @join_options(PartLoop)
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
        adapts: Patterns | None = None,
        adapter: Adapter | None = None,
    ) -> None:
        options = PartLoop.of(locals())
        super().__init__(
            backbone,
            options,
            learner=partial(make_learner, adapts=options.adapts, adapter=options.adapter),
            outer_optimizer=outer_optimizer,
            outer_scheduler=outer_scheduler,
            metrics=metrics,
        )
