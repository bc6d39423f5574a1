"""Almost no inner loop: only the head adapts."""

from __future__ import annotations

from dataclasses import fields
from typing import Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from metalearn.checks import check_choice, check_number
from metalearn.errors import ConfigError
from metalearn.inner import Adaptation, HeadLearner, Learner, NormPolicy, TaskNorm, UpdateRule
from metalearn.inner.execution.choice import ExecutionName
from metalearn.inner.ridge import RidgeAdaptation
from metalearn.modules.episodic.base import InnerLR, LossFunction, MemoryMode, MetaModule, Scheduler
from metalearn.modules.episodic.scores import Metrics

__all__ = ["ANIL"]


class ANIL(MetaModule):
    """ANIL (Raghu et al. 2020): the inner loop adapts the head ``w`` alone, on features ``z = body(x)``; the outer loop trains
    body and head. Tensors outside the head, such as a scale after it, are outer parameters.

    With ``w_{m+1} = w_m - inner_lr * grad_w l_S(w_m, z_S)``, the body's gradient is the derivative of ``l_Q(w_N, z_Q)``
    through both ``z_Q`` and, by way of ``w_N``, ``z_S``.

    Args:
        backbone: any network ``[n, ...] -> [n, ways]``. Where its output is what the head gives for one tensor, features are
            computed once per episode; where something follows the head, the head is called several times, or it shares a tensor
            with other layers, the whole network is run at every inner step, which one line says.
        inner_steps: see :class:`MAML`, as for all other arguments.
        inner_lr: see :class:`MAML`.
        first_order: see :class:`MAML`.
        eval_inner_steps: see :class:`MAML`.
        loss: see :class:`MAML`.
        inner_optimizer: see :class:`MAML`.
        execution: see :class:`MAML`.
        memory: see :class:`MAML`.
        norm: see :class:`MAML`. Support and query images are normalised apart, as MAML does.
        initial_inner_lr: see :class:`MAML`.
        outer_optimizer: see :class:`MAML`.
        outer_scheduler: see :class:`MAML`.
        inner_weight_decay: see :class:`MAML`.
        inner_clip_norm: see :class:`MAML`.
        support_chunk: see :class:`MAML`.
        multi_step_loss: see :class:`MAML`.
        tasks_at_once: see :class:`MAML`.
        compile: see :class:`MAML`.
        kernels: see :class:`MAML`.
        metrics: see :class:`MAML`.
        head: the name of the submodule that adapts, such as ``"fc"`` in torchvision's ResNets.
        head_solver: ``"gradient"``: inner steps; ``"ridge"``: the head, a ``torch.nn.Linear``, is the ridge regression of the
            support set's one-hot labels on its features, solved in closed form and differentiated exactly, times a learned
            scale (R2-D2, Bertinetto et al. 2019). There are no inner steps then.
        initial_ridge: where the learned weight of the squared norm starts, against the mean squared error of an example.

    Raises:
        ConfigError: an argument is out of range, or the backbone has no such head.
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
        head: str = "head",
        head_solver: Literal["gradient", "ridge"] = "gradient",
        initial_ridge: float = 1.0,
    ) -> None:
        self._head_name, self._solver, self._initial_ridge = head, head_solver, initial_ridge
        check_choice("head_solver", head_solver, ["gradient", "ridge"])
        check_number("initial_ridge", initial_ridge, "use 1.0", above=0)
        if head_solver == "ridge":
            unused = {
                "inner_lr": isinstance(inner_lr, str), "inner_optimizer": inner_optimizer != "sgd",
                "inner_weight_decay": bool(inner_weight_decay), "inner_clip_norm": inner_clip_norm is not None,
                "support_chunk": support_chunk is not None, "multi_step_loss": multi_step_loss is not None,
            }  # fmt: skip
            for name in (name for name, given in unused.items() if given):
                raise ConfigError(
                    f"{name} is given with head_solver='ridge', but a head that is solved in closed form takes no inner "
                    f"steps; leave {name} out, or use head_solver='gradient'"
                )
            inner_steps, eval_inner_steps = 1, None
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
        self.save_hyperparameters({"head": head, "head_solver": head_solver, "initial_ridge": initial_ridge})

    def make_learner(self, backbone: nn.Module, norm: TaskNorm) -> Learner:
        needed_by = "head_solver='ridge'" if self._solver == "ridge" else None
        return HeadLearner(backbone, norm, self._head_name, needed_by)

    def make_adaptation(self, adaptation: Adaptation) -> Adaptation:
        if self._solver == "gradient":
            return adaptation
        layer = self.backbone.get_submodule(self._head_name)
        if type(layer) is not nn.Linear:
            raise ConfigError(
                f"head_solver is 'ridge', but the head {self._head_name!r} is a {type(layer).__name__}, and only that of a "
                "torch.nn.Linear has a closed form; use head_solver='gradient'"
            )
        self.log_ridge = nn.Parameter(torch.tensor(self._initial_ridge).log())
        self.scale = nn.Parameter(torch.tensor(1.0))
        shared = {field.name: getattr(adaptation, field.name) for field in fields(adaptation)}
        bias = f"{self._head_name}.bias" if layer.bias is not None else None
        return RidgeAdaptation(**shared, weight=f"{self._head_name}.weight", bias=bias)

    def _sizes(self) -> list[dict[str, Tensor | float]]:
        if self._solver == "gradient":
            return super()._sizes()
        return [{"log_ridge": self.log_ridge, "scale": self.scale}]

    def _extra(self) -> list[Tensor]:
        return super()._extra() if self._solver == "gradient" else [self.log_ridge, self.scale]
