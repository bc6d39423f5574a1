"""The inner problem of few-shot tasks at a point: its gradient, and the derivative of its solution."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.linalg import vector_norm

from metalearn.bilevel.adjoint import solve_adjoint
from metalearn.bilevel.counts import Count, Oracle, OracleCounts
from metalearn.bilevel.linearization import Linearization
from metalearn.bilevel.solvers.linear import LinearSolver
from metalearn.bilevel.trees import Layout
from metalearn.inner.adaptation import Adaptation
from metalearn.inner.ambient import recording
from metalearn.inner.rules import Params
from metalearn.inner.support_gradient import SupportGradient

__all__ = ["Report", "TaskProblem"]


@dataclass(eq=False)
class Report:
    """What the hypergradients of a step cost, and how well their systems were solved.

    Attributes:
        calls: oracle calls, each times the tasks that it was made for.
        inner: ``|grad_y g|`` of tasks, ``[b]`` each.
        dual: ``|H v - grad_y f|``, likewise.
    """

    calls: list[OracleCounts] = field(default_factory=list)
    inner: list[Tensor] = field(default_factory=list)
    dual: list[Tensor] = field(default_factory=list)

    @property
    def counts(self) -> OracleCounts:
        """All calls together."""
        return sum(self.calls, OracleCounts())

    def clear(self) -> None:
        """Forget everything."""
        self.calls.clear()
        self.inner.clear()
        self.dual.clear()

    def count(self, oracle: Oracle, tasks: int) -> None:
        """Count one call for each task."""
        # tasks may run in threads: an entry more is safe there, where a sum in place is not
        self.calls.append(OracleCounts(**{oracle: tasks}))


@dataclass(frozen=True)
class TaskProblem:
    """``g(y) = l_S(y) + penalty |y - y_0|^2 / 2`` of some tasks.

    Attributes:
        adaptation: the inner loop, whose loss is ``l_S``.
        take_gradient: takes the gradient of ``l_S``.
        penalty: above 0.
        linear: solves the linear system; ``None`` where nothing is attached.
        report: is written to.
        layout: of ``y``.
        centre: ``y_0``.
        others: the tensors that do not adapt.
        support: the encoded support set.
        targets: its targets.
        count: takes note of an oracle call.
    """

    adaptation: Adaptation
    take_gradient: SupportGradient
    penalty: float
    linear: LinearSolver | None
    report: Report
    layout: Layout
    centre: Tensor
    others: Params
    support: Tensor
    targets: Tensor
    count: Count

    def gradient(self, y: Tensor, step: int, create_graph: bool) -> Tensor:
        """``grad_y g``, ``[D]`` or ``[B, D]``."""
        if not y.requires_grad and (self.take_gradient.memory == "store" or not create_graph):
            y = y.detach().requires_grad_()
        grads = self.take_gradient.take(
            self.adaptation,
            self.layout.unravel(y),
            self.others,
            self.support,
            self.targets,
            step,
            2 if create_graph else 0,
        )
        slope = self.layout.ravel(grads) + self.penalty * (y - self.centre)
        return slope if create_graph else slope.detach()

    def attach(self, y: Tensor, step: int) -> Tensor:
        """``y`` with the graph of the implicit function, by the support set, by all others, and by the centre."""
        point = y.detach().requires_grad_()
        reached = [self.support, *self.others.values()]
        leaves = [value.detach().requires_grad_(value.requires_grad) for value in reached]
        kept = replace(
            self,
            take_gradient=replace(self.take_gradient, memory="store"),
            centre=self.centre.detach(),
            others=dict(zip(self.others, leaves[1:], strict=True)),
            support=leaves[0],
        )
        with recording(False):
            gradient = kept.gradient(point, step, True)
        here = Linearization(gradient, point, [leaf for leaf in leaves if leaf.requires_grad], self.count)
        self.report.inner.append(vector_norm(here.residual, dim=-1).reshape(-1))
        live = [value for value in reached if value.requires_grad]
        attached: Tensor = _Implicit.apply(partial(self._adjoint, here), point.detach(), self.centre, *live)
        return attached

    def _adjoint(self, here: Linearization, u: Tensor) -> tuple[Tensor, list[Tensor]]:
        """``-J v`` with ``H v = u``: ``penalty v`` for the centre, and that of each tensor that is reached."""
        assert self.linear is not None
        solution = solve_adjoint(here, u, self.linear, caller="the inner problem of tasks", about=self.report)
        self.report.dual.append(solution.residual.reshape(-1))
        return self.penalty * solution.v, here.pull_back(solution.v)


class _Implicit(torch.autograd.Function):
    """``y`` as it is; its backward pass solves the linear system.

    The graph that the products need was made in the forward pass, so that nothing of the network runs in a thread of autograd's
    own.
    """

    @staticmethod
    def forward(
        ctx: Any, adjoint: Callable[[Tensor], tuple[Tensor, list[Tensor]]], y: Tensor, centre: Tensor, *reached: Tensor
    ) -> Tensor:
        ctx.adjoint = adjoint
        return y.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Any, ...]:
        of_centre, of_reached = ctx.adjoint(cotangent)
        return None, None, of_centre, *of_reached
