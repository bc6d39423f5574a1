"""MAML with implicit gradients."""

from __future__ import annotations

from dataclasses import fields
from typing import Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import nn

from metalearn.bilevel.adaptation import BilevelAdaptation
from metalearn.bilevel.oracles import OracleCounts
from metalearn.bilevel.solvers.indefinite import CGOrMinRes, NormalCG
from metalearn.bilevel.solvers.inner import GradientDescent
from metalearn.bilevel.solvers.linear import CG, LinearSolver
from metalearn.checks import MOST_STEPS, check_choice, check_number, check_whole
from metalearn.inner import Adaptation, Learner, NormPolicy, TaskNorm
from metalearn.inner.execution.choice import ExecutionName
from metalearn.modules.episodic.base import LossFunction, Scheduler
from metalearn.modules.episodic.bilevel_tasks import BilevelTasks
from metalearn.modules.episodic.scores import Metrics

__all__ = ["IMAML"]


class IMAML(BilevelTasks):
    """iMAML (Rajeswaran et al. 2019): the inner problem ``y* = argmin_y l_S(y) + lam |y - x|^2 / 2`` ties a task's weights
    ``y`` to the meta-learned ones ``x``, and the meta-gradient is ``lam v`` with ``(H + lam I) v = grad l_Q(y*)``, ``H`` the
    Hessian of ``l_S``, by conjugate gradients: what it keeps in memory does not grow with the inner steps.

    Args:
        backbone: see :class:`MAML`, as for all other arguments.
        inner_steps: gradient steps on the inner problem in training.
        inner_lr: their size, below 2 over the curvature of ``l_S`` plus ``lam``.
        lam: the pull towards ``x``; it must outweigh the negative curvature of ``l_S``.
        cg_steps: iterations of conjugate gradients.
        linear_solver: ``"cg"``: a Hessian-vector product an iteration, and an error where ``H + lam I`` has negative curvature,
            as networks have early in training; ``"auto"``: for tasks in which that is so up to 20 times as many iterations of
            minimal residuals instead, said once; ``"normal_cg"``: two products, for curvature of any sign.
        damping: ``d``, added to the linear system alone, ``(H + (lam + d) I) v = grad l_Q``: above the negative curvature,
            conjugate gradients run, and the meta-gradient is biased towards ``lam/(lam + d) grad l_Q``; 0 for the exact one.
        eval_inner_steps: see :class:`MAML`.
        loss: see :class:`MAML`.
        execution: see :class:`MAML`.
        norm: see :class:`MAML`.
        outer_optimizer: see :class:`MAML`.
        outer_scheduler: see :class:`MAML`.
        support_chunk: see :class:`MAML`.
        tasks_at_once: see :class:`MAML`.
        kernels: see :class:`MAML`.
        metrics: see :class:`MAML`.

    Raises:
        ConfigError: an argument is out of range.
    """

    def __init__(
        self,
        backbone: nn.Module,
        inner_steps: int = 16,
        inner_lr: float = 0.1,
        lam: float = 2.0,
        cg_steps: int = 5,
        linear_solver: Literal["auto", "cg", "normal_cg"] = "cg",
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
        check_number("lam", lam, "use 2.0", above=0)
        check_number("damping", damping, "use 0.0", least=0)
        check_whole("cg_steps", cg_steps, 1, MOST_STEPS)
        check_choice("linear_solver", linear_solver, ["auto", "cg", "normal_cg"])
        check_number("inner_lr", inner_lr, "use 0.1", above=0)
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
        super().__init__(
            backbone=backbone,
            inner_steps=inner_steps,
            inner_lr=inner_lr,
            eval_inner_steps=eval_inner_steps,
            loss=loss,
            execution=execution,
            memory="store",
            norm=norm,
            outer_optimizer=outer_optimizer,
            outer_scheduler=outer_scheduler,
            support_chunk=support_chunk,
            tasks_at_once=tasks_at_once,
            kernels=kernels,
            metrics=metrics,
        )
        self.save_hyperparameters(
            {"lam": lam, "cg_steps": cg_steps, "linear_solver": linear_solver, "damping": damping}
        )

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
