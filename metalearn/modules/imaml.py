"""MAML with implicit gradients."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import partial
from typing import Literal, get_args

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import nn

from metalearn.bilevel.adaptation import BilevelAdaptation
from metalearn.bilevel.counts import OracleCounts
from metalearn.bilevel.solvers.indefinite import CGOrMinRes, NormalCG
from metalearn.bilevel.solvers.inner import GradientDescent
from metalearn.bilevel.solvers.linear import CG, LinearSolver
from metalearn.checks import check_choice, check_number
from metalearn.inner import Adaptation, Learner, NormPolicy, TaskNorm
from metalearn.inner.inner_loop import ExecutionName, InnerLoop, check_steps, setting
from metalearn.inner.losses import LossFunction
from metalearn.modules.episodic.base import Scheduler
from metalearn.modules.episodic.bilevel_tasks import BilevelTasks
from metalearn.modules.episodic.scores import Metrics

__all__ = ["IMAML", "ImplicitLoop"]

LinearSolverName = Literal["auto", "cg", "normal_cg"]


@dataclass(frozen=True)
class ImplicitLoop(InnerLoop):
    """The options of :class:`IMAML`."""

    inner_steps: int = setting(16, "gradient steps on the inner problem in training.", check_steps)
    inner_lr: float = setting(
        0.1,
        "the size of these steps, below 2 over the curvature of ``l_S`` plus ``lam``.",
        partial(check_number, remedy="use 0.1", above=0),
    )
    lam: float = setting(
        2.0,
        "the pull towards ``x``; it must outweigh the negative curvature of ``l_S``.",
        partial(check_number, remedy="use 2.0", above=0),
    )
    cg_steps: int = setting(5, "iterations of conjugate gradients.", check_steps)
    linear_solver: LinearSolverName = setting(
        "cg",
        '``"cg"`` takes a Hessian-vector product an iteration, and raises where ``H + lam I`` has negative curvature, as '
        'networks have early in training. ``"auto"`` takes up to 20 times as many iterations of minimal residuals for tasks in '
        'which that is so, which is said once. ``"normal_cg"`` takes two products, for curvature of any sign.',
        partial(check_choice, choices=get_args(LinearSolverName)),
    )
    damping: float = setting(
        0.0,
        "``d``, which is added to the linear system alone: ``(H + (lam + d) I) v = grad l_Q``. Above the negative curvature "
        "conjugate gradients run, and the meta-gradient is biased towards ``lam/(lam + d) grad l_Q``; 0 is exact.",
        partial(check_number, remedy="use 0.0", least=0),
    )


class IMAML(BilevelTasks):
    """Implicit MAML: the meta-gradient depends on the inner solution alone (Rajeswaran et al. 2019).

    The inner problem ``y* = argmin_y l_S(y) + lam |y - x|^2 / 2`` ties a task's weights ``y`` to the meta-learned ones ``x``.
    The meta-gradient is ``lam v`` with ``(H + lam I) v = grad l_Q(y*)``, ``H`` the Hessian of ``l_S``, by conjugate gradients:
    what it keeps in memory does not grow with the inner steps.

    Raises:
        ConfigError: an argument is out of range.
    """

    options_class = ImplicitLoop

    def __init__(
        self,
        backbone: nn.Module,
        inner_steps: int = 16,
        inner_lr: float = 0.1,
        lam: float = 2.0,
        cg_steps: int = 5,
        linear_solver: LinearSolverName = "cg",
        damping: float = 0.0,
        eval_inner_steps: int | None = None,
        loss: LossFunction = "cross_entropy",
        execution: ExecutionName = "auto",
        norm: NormPolicy = "transductive",
        outer_optimizer: OptimizerCallable = lambda params: torch.optim.Adam(params, lr=1e-3),
        outer_scheduler: Scheduler = None,
        support_chunk: int | None = None,
        tasks_at_once: int | None = None,
        kernels: bool = True,
        metrics: Metrics = None,
    ) -> None:
        options = ImplicitLoop.of(locals())
        self.lam, self.damping, self._step = lam, damping, inner_lr
        self._linear: LinearSolver = CGOrMinRes(iterations=cg_steps, max_iterations=20 * cg_steps, damping=damping)
        if linear_solver != "auto":
            plain = CG if linear_solver == "cg" else NormalCG
            self._linear = plain(iterations=cg_steps, damping=damping)
        self.counts = OracleCounts()
        self.advice = (
            f"lam + damping is {lam + damping:g} and must exceed the negative curvature of the support loss: raise damping, or "
            "use linear_solver='auto' or 'normal_cg'"
        )
        super().__init__(backbone, options, outer_optimizer, outer_scheduler, metrics)

    def make_learner(self, backbone: nn.Module, norm: TaskNorm) -> Learner:
        return Learner(backbone, norm)

    def make_adaptation(self, adaptation: Adaptation) -> Adaptation:
        return BilevelAdaptation(
            **{each.name: getattr(adaptation, each.name) for each in fields(adaptation)},
            inner=GradientDescent(step_size=self._step, steps=self.inner_steps),
            linear=self._linear,
            penalty=self.lam,
            learns_start=True,
        )
