"""The inner problems of few-shot tasks, inside the inner loop of a module.

They are strongly convex. They are solved for all tasks at once, and differentiated by ITD or AID, through everything that the
support loss was computed from.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from metalearn.bilevel.counts import Oracle
from metalearn.bilevel.solvers.indefinite import NormalCG
from metalearn.bilevel.solvers.inner import InnerSolver
from metalearn.bilevel.solvers.linear import LinearSolver
from metalearn.bilevel.task_problem import Report, TaskProblem
from metalearn.bilevel.trees import Layout
from metalearn.bilevel.unrolled import count_step
from metalearn.errors import BilevelError
from metalearn.inner.adaptation import Adaptation, InnerMethod, Settings
from metalearn.inner.losses import Loss
from metalearn.inner.rules import Params
from metalearn.inner.solvers import Costs, TaskSolver
from metalearn.inner.support_gradient import StepwiseMethod, SupportGradient

__all__ = ["ImplicitMethod", "ImplicitSolver", "half_squared_error"]


def half_squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """``mean_i |o_i - t_i|^2 / 2`` against float targets ``[n, N]`` or the one-hot vectors of classes ``[n]``."""
    if not targets.is_floating_point():
        targets = (targets.unsqueeze(-1) == torch.arange(outputs.shape[-1], device=targets.device)).to(outputs.dtype)
    return (outputs - targets).square().sum(-1).mean() / 2


@dataclass(frozen=True)
class ImplicitMethod(StepwiseMethod):
    """``y* = argmin_y g(y)`` with ``g(y) = l_S(y) + penalty |y - y_0|^2 / 2``, where ``y_0`` holds the tensors that adapt.

    The meta-gradient of ``f = l_Q(y)`` is its explicit part plus ``-J v`` with ``H v = grad_y f`` at the last iterate (AID), or
    the derivative through the inner steps (ITD); ``J`` is the derivative of ``grad_y g`` by the support features, by what else
    ``l_S`` depends on, and, where the start is learned, by ``y_0``: there ``-J v = penalty v`` (iMAML).

    Attributes:
        inner: takes the inner steps.
        penalty: above 0.
        linear: solves the linear system, its damping included; ``None`` for ITD.
        gradient: takes the gradient of ``l_S``.
        learns_start: whether ``y_0`` gets a gradient; otherwise it is a constant.
        inner_loss: ``l_S`` where it is not the loss of the query set.
        report: is written to while gradients are taken.
    """

    inner: InnerSolver
    penalty: float
    linear: LinearSolver | None = None
    gradient: SupportGradient = SupportGradient()  # noqa: RUF009  # frozen
    learns_start: bool = False
    inner_loss: Loss | None = None
    report: Report = field(default_factory=Report)

    @property
    def fits_one_hot(self) -> bool:  # type: ignore[override]
        """Whether the inner loss is a squared error to one-hot vectors."""
        return self.inner_loss is not None

    def note_query_loss(self, losses: Tensor) -> None:
        """Let their backward pass count as a gradient of ``f`` for each task."""
        if losses.requires_grad:
            tasks = losses.numel()
            losses.register_hook(lambda _: self.report.count("gc_f", tasks))

    def iterates(
        self,
        adaptation: Adaptation,
        params: Params,
        support: Tensor,
        targets: Tensor,
        steps: int,
        settings: Settings,
        order: int,
    ) -> Iterator[Params]:
        """Yield ``y_0, ..., y_steps``, times ``settings[0]["scale"]`` if there is one.

        With ``order=2`` the last one carries the graph.
        """
        problem = self._pose(adaptation, params, support, targets, order)
        unrolls = order == 2 and self.linear is None
        implicit = order == 2 and self.linear is not None
        scale = settings[0].get("scale")

        def gradient(y: Tensor, step: int) -> Tensor:
            return count_step(problem.gradient(y, step, unrolls), y, problem.count)

        y = last = problem.centre if unrolls else problem.centre.detach()
        yield _scaled(problem.layout.unravel(y), scale)
        for step in range(steps):
            y, last = self.inner.unroll(gradient, y, last, step, 1)
            if implicit and step == steps - 1:
                y = problem.attach(y, steps)
            yield _scaled(problem.layout.unravel(y), scale)

    def slope(
        self, adaptation: Adaptation, params: Params, adapted: Params, support: Tensor, targets: Tensor, step: int,
        settings: Settings,
    ) -> Params:  # fmt: skip
        """``grad g``, of the solution before it is scaled."""
        inner = adaptation if self.inner_loss is None else replace(adaptation, loss=self.inner_loss)
        grads = super().slope(inner, params, adapted, support, targets, step, settings)
        start, _ = adaptation.start(params, len(support))
        return {name: grad + self.penalty * (adapted[name] - start[name].detach()) for name, grad in grads.items()}

    def _pose(
        self, adaptation: Adaptation, params: Params, support: Tensor, targets: Tensor, order: int
    ) -> TaskProblem:
        """The inner problem of tasks."""
        tasks = len(support) if adaptation.stacked else 1
        start, others = adaptation.start(params, tasks)
        layout = Layout.of(start, "the adapted parameters", tasks if adaptation.stacked else None)
        centre = layout.ravel(start)
        if order < 2 or not self.learns_start:
            centre = centre.detach()
        inner = adaptation if self.inner_loss is None else replace(adaptation, loss=self.inner_loss)

        def count(oracle: Oracle) -> None:
            if order == 2:  # an evaluation costs no hypergradient
                self.report.count(oracle, tasks)

        return TaskProblem(
            inner,
            self.gradient,
            self.penalty,
            self.linear,
            self.report,
            layout,
            centre,
            others,
            support,
            targets,
            count,
        )


class ImplicitSolver(TaskSolver):
    """Solves the inner problem to its minimum, or near it, and differentiates the solution.

    Args:
        method: how.
        advice: what a user can do where the linear system cannot be solved.
        initial_scale: where the learned scale of the solution starts; ``None`` for no scale.

    Attributes:
        scale: multiplies the solution, if there is one.
    """

    comes_first: ClassVar[bool] = True

    def __init__(self, method: ImplicitMethod, advice: str, initial_scale: float | None = None) -> None:
        super().__init__()
        self._method, self._advice = method, advice
        self.scale = None if initial_scale is None else nn.Parameter(torch.tensor(initial_scale))

    def method(self) -> InnerMethod:
        return self._method

    def probed_method(self) -> InnerMethod:
        """The same with two steps of a linear solver for curvature of any sign, and a report of its own.

        On noise, after two inner steps, curvature says nothing of the run.
        """
        linear = None if self._method.linear is None else NormalCG(iterations=2)
        return replace(self._method, linear=linear, report=Report())

    def settings(self, tensors: Params) -> Settings:
        """The learned scale, if there is one."""
        return [{} if self.scale is None else {"scale": self.scale}]

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Within this context, which is that of one batch, the report is written anew.

        Raises:
            BilevelError: the linear solver met negative curvature, or its residual has grown.
        """
        self._method.report.clear()
        try:
            yield
        except BilevelError as error:
            raise BilevelError(f"the inner problem of a task cannot be solved: {error} ({self._advice})") from error

    def costs(self) -> Costs | None:
        """The oracle calls of the batch, and the residuals of its inner problems and linear systems."""
        report = self._method.report
        return Costs(report.counts.as_dict(), {"inner": report.inner, "dual": report.dual})


def _scaled(tree: Params, scale: Tensor | float | None) -> Params:
    return tree if scale is None else {name: value * scale for name, value in tree.items()}
