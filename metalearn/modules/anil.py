"""Almost no inner loop: only the head adapts."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Literal, get_args

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from metalearn.checks import check_choice, check_number
from metalearn.errors import ConfigError
from metalearn.inner import Adaptation, HeadLearner, Learner, MemoryMode, NormPolicy, TaskNorm, UpdateRule
from metalearn.inner.inner_loop import ExecutionName, InnerLoop, setting
from metalearn.inner.losses import LossFunction
from metalearn.inner.ridge import RidgeAdaptation
from metalearn.inner.step_sizes import InnerLR
from metalearn.modules.episodic.base import MetaModule, Scheduler
from metalearn.modules.episodic.scores import Metrics

__all__ = ["ANIL", "HeadLoop"]

HeadSolver = Literal["gradient", "ridge"]


@dataclass(frozen=True)
class HeadLoop(InnerLoop):
    """The options of :class:`ANIL`."""

    head: str = setting("head", 'the name of the submodule that adapts, such as ``"fc"`` in torchvision\'s ResNets.')
    head_solver: HeadSolver = setting(
        "gradient",
        '``"gradient"`` takes inner steps. With ``"ridge"`` the head, a ``torch.nn.Linear``, is the ridge regression of the '
        "support set's one-hot labels on its features, solved in closed form and differentiated exactly, times a learned scale "
        "(R2-D2, Bertinetto et al. 2019). There are no inner steps then.",
        partial(check_choice, choices=get_args(HeadSolver)),
    )
    initial_ridge: float = setting(
        1.0,
        "where the learned weight of the squared norm starts, against the mean squared error of an example.",
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
    gradient is the derivative of ``l_Q(w_N, z_Q)`` through both ``z_Q`` and, by way of ``w_N``, ``z_S``.

    Args:
        backbone: any network ``[n, ...] -> [n, ways]``. Where its output is what the head gives for one tensor, features are
            computed once per episode. Where something follows the head, the head is called several times, or it shares a tensor
            with other layers, the whole network is run at every inner step, which one line says.

    Raises:
        ConfigError: an argument is out of range, or the backbone has no such head.
    """

    options_class = HeadLoop

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
        head_solver: HeadSolver = "gradient",
        initial_ridge: float = 1.0,
    ) -> None:
        options = HeadLoop.of(locals())
        if head_solver == "ridge":
            options = replace(options, inner_steps=1, eval_inner_steps=None)
        self._head_name, self._solver, self._initial_ridge = head, head_solver, initial_ridge
        super().__init__(backbone, options, outer_optimizer, outer_scheduler, metrics)

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
