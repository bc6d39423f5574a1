"""Model-agnostic meta-learning."""

from __future__ import annotations

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import nn

from metalearn.inner import Learner, NormPolicy, TaskNorm, UpdateRule
from metalearn.inner.execution.choice import ExecutionName
from metalearn.modules.episodic.base import InnerLR, LossFunction, MemoryMode, MetaModule, Scheduler
from metalearn.modules.episodic.scores import Metrics

__all__ = ["MAML"]


class MAML(MetaModule):
    """Multi-step MAML (Finn et al. 2017): learn an initialisation that a few gradient steps adapt to a new task.

    With support loss ``l_S``, query loss ``l_Q`` and ``w_{j+1} = w_j - inner_lr * grad l_S(w_j)``, the meta-gradient of
    ``l_Q(w_N)`` is ``prod_j (I - inner_lr * H_j) grad l_Q(w_N)`` with ``H_j`` the Hessian of ``l_S`` at ``w_j``;
    ``first_order=True`` drops the product (FOMAML).

    Args:
        backbone: any network ``[n, ...] -> [n, ways]``. It stays as it is; in the inner loop its batch normalisation is that of
            one task, as ``norm`` says.
        inner_steps: adaptation steps in training.
        inner_lr: their step size; a list gives one a step, a mapping one for each beginning of a tensor's name;
            ``"learn"`` learns one per parameter tensor, ``"learn_per_step"`` one per tensor and step (MAML++),
            ``"learn_per_element"`` one per element (Meta-SGD).
        first_order: treat the inner gradients as constants.
        eval_inner_steps: steps in validation, test, prediction and :meth:`adapt`; ``None`` for ``inner_steps``.
        loss: ``"cross_entropy"``, ``"mse"``, or in Python any ``loss(outputs, targets) -> scalar``: integer targets are class
            labels, floats are whatever the loss takes them for. A ``torch.nn.Module`` is trained, cast and saved with this one.
        inner_optimizer: the update rule: ``"sgd"``, ``"momentum"``, ``"nesterov"``, ``"adam"``, ``"adamw"``, an
            :class:`~metalearn.inner.UpdateRule`, or the full name of a class such as ``"torch.optim.Adagrad"`` (by way
            of the package higher, sequentially).
        execution: ``"sequential"`` (any network), ``"vectorized"`` (several tasks in one set of kernels, where a float64
            probe shows that to be exact, else sequential), or ``"auto"``: vectorised wherever it is exact.
        memory: what is kept of the inner steps for the second-order meta-gradient: ``"store"``: their graph; ``"remat"``:
            the inner iterates, each step is computed again; ``"mixed"``: as little, by forward-over-reverse products.
        norm: whose statistics normalise the query set: ``"transductive"`` (its own, as in the MAML paper), ``"support"``
            (the support set's), ``"running"`` (stored ones of a pretrained network), or ``"per_step"`` (running ones
            kept for each number of inner steps, as in MAML++).
        initial_inner_lr: where ``inner_lr="learn"`` starts.
        outer_optimizer: makes the outer optimiser from the parameters.
        outer_scheduler: makes its schedule, counted in outer steps; ``"cosine"`` anneals to 0 at the end of the run.
        inner_weight_decay: the rate of weight decay in an inner step, as torch's optimisers take it: times the weights, added
            to the clipped gradient; with ``adamw`` decoupled, in the place of its 0.01.
        inner_clip_norm: the largest norm of a task's inner gradient, over all its tensors, as by
            ``torch.nn.utils.clip_grad_norm_`` before the step; ``None`` for no bound.
        support_chunk: support examples whose inner gradient is taken at once, to save memory: the gradients of the chunks are
            averaged. Batch normalisation then takes the statistics of each chunk. ``None`` for all.
        multi_step_loss: outer steps over which the query losses after every inner step count, first alike, at the end the
            last alone (MAML++); ``None`` for the last alone from the start.
        tasks_at_once: tasks that the vectorised execution adapts together; ``None`` for as many as suit the device. Bounds
            memory; the meta-gradient stays that of all tasks.
        compile: compile the step: one compilation per shape, said in the log, minutes for a large network on a CPU.
        kernels: whether our operators for convolutions and batch normalisation are used where they are exact;
            ``False`` for torch's own.
        metrics: a torchmetrics metric, a collection, a list or a mapping by name: copies are updated with the query outputs and
            targets of all tasks, and logged as ``val/<name>`` and ``test/<name>``.

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
        compile: bool = False,
        kernels: bool = True,
        metrics: Metrics = None,
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
            inner_weight_decay=inner_weight_decay,
            inner_clip_norm=inner_clip_norm,
            support_chunk=support_chunk,
            multi_step_loss=multi_step_loss,
            tasks_at_once=tasks_at_once,
            compile=compile,
            kernels=kernels,
            metrics=metrics,
        )

    def make_learner(self, backbone: nn.Module, norm: TaskNorm) -> Learner:
        return Learner(backbone, norm)
