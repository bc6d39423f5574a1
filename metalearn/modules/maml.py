"""Model-agnostic meta-learning."""

from __future__ import annotations

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import nn

from metalearn.inner import Learner, NormPolicy
from metalearn.modules.base import InnerLR, LossFunction, MemoryMode, MetaModule, Scheduler
from metalearn.modules.execution import ExecutionName

__all__ = ["MAML"]


class MAML(MetaModule):
    """Multi-step MAML (Finn et al. 2017): learn an initialisation that a few gradient steps adapt to a new task.

    With support loss ``l_S``, query loss ``l_Q`` and ``w_{j+1} = w_j - inner_lr * grad l_S(w_j)``, the meta-gradient of
    ``l_Q(w_N)`` is ``prod_j (I - inner_lr * H_j) grad l_Q(w_N)`` with ``H_j`` the Hessian of ``l_S`` at ``w_j``;
    ``first_order=True`` drops the product (FOMAML).

    Args:
        backbone: any network ``[n, ...] -> [n, ways]``. Its ``BatchNorm`` layers are replaced, in place, by per-task ones
            with the same parameters.
        inner_steps: adaptation steps in training.
        inner_lr: their step size; a list gives one a step; ``"learn"`` learns one per parameter tensor.
        first_order: treat the inner gradients as constants.
        eval_inner_steps: steps in validation, test, prediction and :meth:`adapt`; ``None`` for ``inner_steps``.
        loss: ``"cross_entropy"``, ``"mse"``, or in Python any ``loss(outputs, targets) -> scalar``.
        inner_optimizer: the update rule, ``"sgd"``.
        execution: ``"sequential"`` (any network), ``"vectorized"`` (all tasks in one set of kernels, where a float64
            probe shows that to be exact, else sequential), or ``"auto"``.
        memory: ``"store"`` keeps the graph of all inner steps.
        norm: whose statistics normalise the query set: ``"transductive"`` (its own, as in the MAML paper), ``"support"``
            (the support set's), or ``"running"`` (stored ones of a pretrained network).
        initial_inner_lr: where ``inner_lr="learn"`` starts.
        outer_optimizer: makes the outer optimiser from the parameters.
        outer_scheduler: makes its schedule, counted in outer steps; ``"cosine"`` anneals to 0 at the end of the run.

    Raises:
        ConfigError: an argument is out of range.
    """

    def __init__(
        self,
        backbone: nn.Module,
        inner_steps: int = 5,
        inner_lr: InnerLR = 0.4,
        first_order: bool = False,
        eval_inner_steps: int | None = None,
        loss: LossFunction = "cross_entropy",
        inner_optimizer: str = "sgd",
        execution: ExecutionName = "auto",
        memory: MemoryMode = "store",
        norm: NormPolicy = "transductive",
        initial_inner_lr: float = 0.1,
        outer_optimizer: OptimizerCallable = lambda params: torch.optim.Adam(params, lr=1e-3),
        outer_scheduler: Scheduler = None,
    ) -> None:
        super().__init__(
            backbone=backbone,
            inner_steps=inner_steps,
            inner_lr=inner_lr,
            first_order=first_order,
            eval_inner_steps=eval_inner_steps,
            loss=loss,
            inner_optimizer=inner_optimizer,
            execution=execution,
            memory=memory,
            norm=norm,
            initial_inner_lr=initial_inner_lr,
            outer_optimizer=outer_optimizer,
            outer_scheduler=outer_scheduler,
        )

    def make_learner(self, backbone: nn.Module) -> Learner:
        return Learner(backbone, self.norm)
