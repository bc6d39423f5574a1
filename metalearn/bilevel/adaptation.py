"""The inner problems of few-shot tasks inside the inner loop of a module: strongly convex, solved for all tasks at once, and
differentiated by ITD or AID, through everything that the support loss was computed from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
from metalearn.bilevel.solvers.inner import GradientDescent, InnerSolver
from metalearn.bilevel.solvers.linear import LinearSolver
from metalearn.bilevel.trees import Layout
from metalearn.bilevel.unrolled import count_step
from metalearn.inner.adaptation import Adaptation
from metalearn.inner.ambient import recording
from metalearn.inner.losses import Loss
from metalearn.inner.rules import Params, StepSizes

__all__ = ["BilevelAdaptation", "Report", "half_squared_error"]


def half_squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """``mean_i |o_i - t_i|^2 / 2`` against float targets ``[n, N]`` or the one-hot vectors of classes ``[n]``."""
    if not targets.is_floating_point():
        targets = (targets.unsqueeze(-1) == torch.arange(outputs.shape[-1], device=targets.device)).to(outputs.dtype)
    return (outputs - targets).square().sum(-1).mean() / 2


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
class BilevelAdaptation(Adaptation):
    """``y* = argmin_y g(y)`` with ``g(y) = l_S(y) + penalty |y - y_0|^2 / 2``, where ``y_0`` holds the tensors that adapt.

    The meta-gradient of ``f = l_Q(y)`` is its explicit part plus ``-J v`` with ``H v = grad_y f`` at the last iterate (AID), or
    the derivative through the inner steps (ITD); ``J`` is the derivative of ``grad_y g`` by the support features, by what else
    ``l_S`` depends on, and, where the start is learned, by ``y_0``: there ``-J v = penalty v`` (iMAML).

    Attributes:
        inner: takes the inner steps.
        linear: solves the linear system, its damping included; ``None`` for ITD.
        penalty: above 0.
        learns_start: whether ``y_0`` gets a gradient; otherwise it is a constant.
        inner_loss: ``l_S`` where it is not the loss of the query set.
        scaled: whether the solution is multiplied by ``step_sizes[0]["scale"]``.
        report: is written to while gradients are taken.
    """

    inner: InnerSolver = GradientDescent(step_size=0.1, steps=1)  # noqa: RUF009  # frozen
    linear: LinearSolver | None = None
    penalty: float = 1.0
    learns_start: bool = False
    inner_loss: Loss | None = None
    scaled: bool = False
    report: Report = field(default_factory=Report)

    def iterates(
        self, params: Params, support: Tensor, targets: Tensor, steps: int, step_sizes: StepSizes, order: int
    ) -> Iterator[Params]:
        """Yield ``y_0, ..., y_steps``; with ``order=2`` the last one carries the graph."""
        start, others = self.split(params)
        tasks = len(support) if self.stacked else 1
        if self.stacked:
            start = {name: value.expand(tasks, *value.shape) for name, value in start.items()}
        layout = Layout.of(start, "the adapted parameters", tasks if self.stacked else None)
        centre = layout.ravel(start)
        if order < 2 or not self.learns_start:
            centre = centre.detach()
        unrolls = order == 2 and self.linear is None
        scale = step_sizes[0]["scale"] if self.scaled else None

        def count(oracle: Oracle) -> None:
            if order == 2:  # an evaluation costs no hypergradient
                self.report.count(oracle, tasks)

        def gradient(y: Tensor, step: int) -> Tensor:
            slope = self._penalised(layout, y, centre, others, support, targets, step, unrolls)
            return count_step(slope, y, count)

        y = last = centre if unrolls else centre.detach()
        yield _scaled(layout.unravel(y), scale)
        for step in range(steps):
            y, last = self.inner.unroll(gradient, y, last, step, 1)
            if order == 2 and self.linear is not None and step == steps - 1:
                y = self._implicit(layout, y, centre, others, support, targets, steps, count)
            yield _scaled(layout.unravel(y), scale)

    def query_loss(self, params: Params, logits: Tensor, targets: Tensor) -> Tensor:
        """See :meth:`Adaptation.query_loss`; its backward pass counts as a gradient of ``f`` for each task."""
        losses = super().query_loss(params, logits, targets)
        if losses.requires_grad:
            tasks = losses.numel()
            losses.register_hook(lambda _: self.report.count("gc_f", tasks))
        return losses

    def _penalised(
        self, layout: Layout, y: Tensor, centre: Tensor, others: Params, support: Tensor, targets: Tensor, step: int,
        create_graph: bool,
    ) -> Tensor:  # fmt: skip
        """``grad_y g``, ``[D]`` or ``[B, D]``."""
        if not y.requires_grad and (self.memory == "store" or not create_graph):
            y = y.detach().requires_grad_()
        inner = self if self.inner_loss is None else replace(self, loss=self.inner_loss)
        grads = inner._gradient(layout.unravel(y), others, support, targets, step, 2 if create_graph else 0)
        slope = layout.ravel(grads) + self.penalty * (y - centre)
        return slope if create_graph else slope.detach()

    def _implicit(
        self, layout: Layout, y: Tensor, centre: Tensor, others: Params, support: Tensor, targets: Tensor, step: int,
        count: Count,
    ) -> Tensor:  # fmt: skip
        """``y`` with the graph of the implicit function, by the support set, by all others, and by the centre."""
        point = y.detach().requires_grad_()
        reached = [support, *others.values()]
        leaves = [value.detach().requires_grad_(value.requires_grad) for value in reached]
        kept = replace(self, memory="store")
        with recording(False):
            gradient = kept._penalised(
                layout, point, centre.detach(), dict(zip(others, leaves[1:], strict=True)), leaves[0], targets, step, True
            )  # fmt: skip
        here = Linearization(gradient, point, [leaf for leaf in leaves if leaf.requires_grad], count)
        self.report.inner.append(vector_norm(here.residual, dim=-1).reshape(-1))
        live = [value for value in reached if value.requires_grad]
        attached: Tensor = _Implicit.apply(partial(self._adjoint, here), point.detach(), centre, *live)
        return attached

    def _adjoint(self, here: Linearization, u: Tensor) -> tuple[Tensor, list[Tensor]]:
        """``-J v`` with ``H v = u``: ``penalty v`` for the centre, and that of each tensor that is reached."""
        assert self.linear is not None
        solution = solve_adjoint(here, u, self.linear, caller="the inner problem of tasks", about=self.report)
        self.report.dual.append(solution.residual.reshape(-1))
        return self.penalty * solution.v, here.pull_back(solution.v)


class _Implicit(torch.autograd.Function):
    """``y`` as it is; its backward pass solves the linear system. The graph that the products need was made in the forward
    pass, so that nothing of the network runs in a thread of autograd's own."""

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


def _scaled(tree: Params, scale: Tensor | float | None) -> Params:
    return tree if scale is None else {name: value * scale for name, value in tree.items()}
