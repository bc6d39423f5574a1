"""MAML with implicit gradients."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import nn

from metalearn.bilevel.adaptation import ImplicitMethod, ImplicitSolver
from metalearn.bilevel.solvers.indefinite import CGOrMinRes, NormalCG
from metalearn.bilevel.solvers.inner import GradientDescent
from metalearn.bilevel.solvers.linear import CG, LinearSolver
from metalearn.checks import check_choice, check_number
from metalearn.inner import Learner, NormPolicy
from metalearn.inner.inner_loop import ExecutionName, InnerLoop, check_steps, setting
from metalearn.inner.losses import LossFunction
from metalearn.inner.support_gradient import SupportGradient
from metalearn.inner.task_types import TaskType
from metalearn.modules.episodic.base import MetaModule
from metalearn.modules.episodic.scores import Metrics
from metalearn.modules.training.outer import Scheduler

__all__ = ["IMAML", "ImplicitLoop"]

LinearSolverName = Literal["auto", "cg", "normal_cg"]


@dataclass(frozen=True)
class ImplicitLoop(InnerLoop):
    """The options of :class:`IMAML`."""

    inner_steps: int = setting(16, "how many gradient steps solve the inner problem in training.", check_steps)
    inner_lr: float = setting(
        0.1,
        "the size of these steps, below 2 over the curvature of ``l_S`` plus ``lam``.",
        partial(check_number, remedy="use 0.1", above=0),
    )
    lam: float = setting(
        2.0,
        "how strongly a task's weights are pulled to ``x``. It must outweigh the negative curvature of ``l_S``.",
        partial(check_number, remedy="use 2.0", above=0),
    )
    cg_steps: int = setting(5, "how many iterations of conjugate gradients solve the linear system.", check_steps)
    linear_solver: LinearSolverName = setting(
        "cg",
        'how the linear system is solved. ``"cg"`` takes one Hessian-vector product an iteration. It raises where ``H + lam I`` '
        'has negative curvature, as networks have early in training. ``"auto"`` solves such tasks by minimal residuals, in up to '
        '20 times as many iterations, and says so once. ``"normal_cg"`` takes two products, for curvature of any sign.',
        partial(check_choice, choices=get_args(LinearSolverName)),
    )
    damping: float = setting(
        0.0,
        "a number ``d`` that is added to the linear system alone: ``(H + (lam + d) I) v = grad l_Q``. Above the negative "
        "curvature conjugate gradients run. The meta-gradient is then biased towards ``lam/(lam + d) grad l_Q``; 0 is exact.",
        partial(check_number, remedy="use 0.0", least=0),
    )


class IMAML(MetaModule):
    """Implicit MAML: the meta-gradient depends on the inner solution alone (Rajeswaran et al. 2019).

    The inner problem ``y* = argmin_y l_S(y) + lam |y - x|^2 / 2`` ties a task's weights ``y`` to the meta-learned ones ``x``.
    The meta-gradient is ``lam v`` with ``(H + lam I) v = grad l_Q(y*)``, ``H`` the Hessian of ``l_S``, by conjugate gradients:
    what it keeps in memory does not grow with the inner steps.

    Logs beside the keys of every module: ``train/inner_residual`` and ``train/dual_residual``, means over tasks, and
    ``oracles/gc_f``, ``gc_g``, ``jvp``, ``hvp``, the calls so far over all tasks and ranks, which are ``counts``.

    Raises:
        ConfigError: an argument is out of range.

    Example:
        >>> import torch
        >>> from metalearn import IMAML, Batch, Episode
        >>> module = IMAML(torch.nn.Linear(1, 1), inner_steps=8, lam=1.0, loss="mse")
        >>> x = torch.randn(4, 10, 1)  # four tasks of ten points
        >>> episode = Episode(Batch(x, 2 * x), Batch(x, 2 * x))
        >>> module.meta_gradient(episode)["backbone.weight"].shape
        torch.Size([1, 1])
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
        memory_limit: float | None = None,
        kernels: bool = True,
        metrics: Metrics = None,
        task: TaskType | None = None,
    ) -> None:
        options = ImplicitLoop.of(locals())
        super().__init__(
            backbone,
            options,
            solver=make_implicit_solver,
            outer_optimizer=outer_optimizer,
            outer_scheduler=outer_scheduler,
            metrics=metrics,
        )
        self.lam, self.damping = lam, damping


def make_implicit_solver(options: InnerLoop, learner: Learner) -> ImplicitSolver:
    """The solver of :class:`IMAML`."""
    assert isinstance(options, ImplicitLoop)
    method = ImplicitMethod(
        GradientDescent(step_size=options.inner_lr, steps=options.inner_steps),
        penalty=options.lam,
        linear=_make_linear_solver(options),
        gradient=SupportGradient(chunk=options.support_chunk),
        learns_start=True,
    )
    advice = (
        f"lam + damping is {options.lam + options.damping:g} and must exceed the negative curvature of the support loss: raise "
        "damping, or use linear_solver='auto' or 'normal_cg'"
    )
    return ImplicitSolver(method, advice)


def _make_linear_solver(options: ImplicitLoop) -> LinearSolver:
    steps, damping = options.cg_steps, options.damping
    if options.linear_solver == "auto":
        return CGOrMinRes(iterations=steps, max_iterations=20 * steps, damping=damping)
    kind = CG if options.linear_solver == "cg" else NormalCG
    return kind(iterations=steps, damping=damping)
