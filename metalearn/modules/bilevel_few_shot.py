"""Few-shot learning as a bilevel problem: a shared body, and one head for each task."""

from __future__ import annotations

from dataclasses import fields
from typing import Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from metalearn.bilevel.adaptation import BilevelAdaptation, half_squared_error
from metalearn.bilevel.oracles import OracleCounts
from metalearn.bilevel.solvers.indefinite import NormalCG
from metalearn.bilevel.solvers.inner import GradientDescent, InnerSolver, Nesterov
from metalearn.bilevel.solvers.linear import CG, FixedPoint, LinearSolver, Neumann
from metalearn.checks import MOST_STEPS, check_choice, check_number, check_whole
from metalearn.errors import ConfigError
from metalearn.inner import Adaptation, HeadLearner, Learner, NormPolicy, TaskNorm
from metalearn.inner.execution.choice import ExecutionName
from metalearn.modules.episodic.base import LossFunction, MemoryMode, Scheduler
from metalearn.modules.episodic.bilevel_tasks import BilevelTasks
from metalearn.modules.episodic.scores import Metrics

__all__ = ["BilevelFewShot", "LinearSolverName"]

LinearSolverName = Literal["cg", "normal_cg", "fixed_point", "neumann"]


class BilevelFewShot(BilevelTasks):
    """The few-shot setting of bilevel optimisation (arXiv 2108.00330, section 2.5): the body ``x`` is shared, and each task
    solves ``y* = argmin_w l_S(w, z_S) + l2 |w|^2 / 2`` for its own head ``w`` on the features ``z = body(images)``.

    The body's hypergradient is the derivative of ``l_Q(y*, z_Q)`` through ``z_Q`` plus, by way of ``y*``, through ``z_S``:
    ``-J v`` with ``H v = grad_w l_Q`` (``estimator="aid"``) or through the inner steps (``"itd"``). Features are computed once
    for all tasks, whose heads are one batched problem. The head is not meta-learned: it starts at 0.

    Args:
        backbone: see :class:`ANIL`, as for all other arguments. Its head is set to 0, and stays there.
        head: see :class:`ANIL`.
        head_loss: the loss of the support set: ``"softmax"``: that of the query set; ``"ridge"``: half the squared error to the
            one-hot labels, where outputs are multiplied by a learned scale.
        l2: the weight of ``|w|^2 / 2``, which makes the inner problem strongly convex.
        estimator: ``"aid"``: implicit; ``"itd"``: through the inner steps.
        inner_steps: in training.
        inner_lr: their size, below 2 over the curvature.
        inner_momentum: of Nesterov's method; 0 for gradient descent.
        linear_solver: of ``H v = grad_w l_Q``; ``"fixed_point"`` and ``"neumann"`` take steps of ``inner_lr``.
        linear_steps: its iterations.
        initial_scale: where the scale of a ridge head starts.
        eval_inner_steps: see :class:`ANIL`.
        loss: see :class:`ANIL`.
        execution: see :class:`ANIL`.
        memory: see :class:`ANIL`; of ITD.
        norm: see :class:`ANIL`.
        outer_optimizer: see :class:`ANIL`.
        outer_scheduler: see :class:`ANIL`.
        support_chunk: see :class:`ANIL`.
        tasks_at_once: see :class:`ANIL`.
        kernels: see :class:`ANIL`.
        metrics: see :class:`ANIL`.

    Raises:
        ConfigError: an argument is out of range, or the backbone has no such head.
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: str = "head",
        head_loss: Literal["softmax", "ridge"] = "softmax",
        l2: float = 0.01,
        estimator: Literal["aid", "itd"] = "aid",
        inner_steps: int = 20,
        inner_lr: float = 0.1,
        inner_momentum: float = 0.0,
        linear_solver: LinearSolverName = "cg",
        linear_steps: int = 10,
        initial_scale: float = 5.0,
        eval_inner_steps: int | None = None,
        loss: LossFunction = "cross_entropy",
        execution: ExecutionName = "auto",
        memory: MemoryMode = "store",
        norm: NormPolicy = "transductive",
        outer_optimizer: OptimizerCallable = lambda params: torch.optim.Adam(params, lr=1e-3),
        outer_scheduler: Scheduler = None,
        support_chunk: int | None = None,
        tasks_at_once: int | None = None,
        kernels: bool = True,
        metrics: Metrics = None,
    ) -> None:
        check_choice("head_loss", head_loss, ["softmax", "ridge"])
        check_choice("estimator", estimator, ["aid", "itd"])
        check_choice("linear_solver", linear_solver, ["cg", "normal_cg", "fixed_point", "neumann"])
        check_number("l2", l2, "use 0.01", above=0)
        check_number("initial_scale", initial_scale, "use 5.0", above=0)
        check_number("inner_lr", inner_lr, "use 0.1", above=0)
        check_whole("linear_steps", linear_steps, 1, MOST_STEPS)
        check_whole("inner_steps", inner_steps, 1, MOST_STEPS)
        if estimator == "aid" and memory != "store":
            raise ConfigError(
                f"memory is {memory!r} with estimator='aid', but AID keeps no inner step; use memory='store', or "
                "estimator='itd'"
            )
        if inner_momentum:
            self._inner: InnerSolver = Nesterov(step_size=inner_lr, momentum=inner_momentum, steps=inner_steps)
        else:
            self._inner = GradientDescent(step_size=inner_lr, steps=inner_steps)
        self._head_name, self.head_loss, self.l2, self.estimator = head, head_loss, l2, estimator
        self._linear = _solver(linear_solver, linear_steps, inner_lr) if estimator == "aid" else None
        self._initial_scale = initial_scale
        self.counts = OracleCounts()
        self.advice = f"l2 is {l2:g}: raise it, or lower inner_lr={inner_lr:g}"
        super().__init__(
            backbone=backbone,
            inner_steps=inner_steps,
            inner_lr=inner_lr,
            eval_inner_steps=eval_inner_steps,
            loss=loss,
            execution=execution,
            memory=memory,
            norm=norm,
            outer_optimizer=outer_optimizer,
            outer_scheduler=outer_scheduler,
            support_chunk=support_chunk,
            tasks_at_once=tasks_at_once,
            kernels=kernels,
            metrics=metrics,
        )
        layer = self.backbone.get_submodule(head)
        check_zeroed(self.backbone, layer, head)
        with torch.no_grad():
            for value in layer.parameters():
                value.zero_()
        self.save_hyperparameters(
            {
                "head": head, "head_loss": head_loss, "l2": l2, "estimator": estimator, "inner_momentum": inner_momentum,
                "linear_solver": linear_solver, "linear_steps": linear_steps, "initial_scale": initial_scale,
                "memory": memory,
            }
        )  # fmt: skip

    def make_learner(self, backbone: nn.Module, norm: TaskNorm) -> Learner:
        needed_by = "head_loss='ridge'" if self.head_loss == "ridge" else None
        return HeadLearner(backbone, norm, self._head_name, needed_by)

    def make_adaptation(self, adaptation: Adaptation) -> Adaptation:
        ridge = self.head_loss == "ridge"
        if ridge:
            self.scale = nn.Parameter(torch.tensor(self._initial_scale))
        return BilevelAdaptation(
            **{each.name: getattr(adaptation, each.name) for each in fields(adaptation)},
            inner=self._inner,
            linear=self._linear,
            penalty=self.l2,
            inner_loss=half_squared_error if ridge else None,
            scaled=ridge,
        )

    def _sizes(self) -> list[dict[str, Tensor | float]]:
        return [{"scale": self.scale}] if self.head_loss == "ridge" else super()._sizes()

    def _extra(self) -> list[Tensor]:
        return [self.scale] if self.head_loss == "ridge" else []


def check_zeroed(network: nn.Module, layer: nn.Module, name: str) -> None:
    """Raise unless all tensors of the head may be 0."""
    own, inside = {id(value) for value in layer.parameters()}, set(layer.modules())
    outside = (value for other in network.modules() if other not in inside for value in other.parameters(recurse=False))
    if any(id(value) in own for value in outside):
        why = "it shares a tensor with another layer"
    elif any(is_parametrized(part) or hasattr(part, "weight_g") for part in inside):
        why = "its weight is computed from others"
    else:
        return
    raise ConfigError(
        f"BilevelFewShot solves for the head {name!r} from 0, but {why}; give the network a head of its own, or use ANIL"
    )


def _solver(name: LinearSolverName, iterations: int, step_size: float) -> LinearSolver:
    if name == "cg":
        return CG(iterations=iterations)
    if name == "normal_cg":
        return NormalCG(iterations=iterations)
    if name == "fixed_point":
        return FixedPoint(iterations=iterations, step_size=step_size)
    return Neumann(iterations=iterations, step_size=step_size)
