"""Gradient steps whose way is the outer direction (Reptile, Nichol et al. 2018)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from metalearn.inner.adaptation import Adaptation, InnerMethod, Settings
from metalearn.inner.rules import Params
from metalearn.inner.solvers.base import TaskSolver
from metalearn.inner.solvers.gradient_steps import GradientSteps
from metalearn.inner.step_sizes import InnerStepSizes

__all__ = ["ReptileMethod", "ReptileSolver"]


@dataclass(frozen=True)
class ReptileMethod(InnerMethod):
    """The steps of another method, where the gradient by the initial tensors ``w`` is ``w - w_N``, whatever the query loss.

    Attributes:
        steps: takes the steps.
    """

    loss_order = 1

    steps: InnerMethod

    @property
    def batches(self) -> bool:  # type: ignore[override]
        """Whether the steps may run on tensors with a leading task axis."""
        return self.steps.batches

    @property
    def stepwise(self) -> InnerMethod | None:
        """What takes the steps."""
        return self.steps.stepwise

    @property
    def chunk(self) -> int | None:  # type: ignore[override]
        """Support examples whose gradient is taken at once."""
        return self.steps.chunk

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
        """Yield ``w_0, w_1, ..., w_steps``; no second derivative is taken."""
        start, _ = adaptation.start(params, len(support))
        iterates = self.steps.iterates(adaptation, params, support, targets, steps, settings, min(order, 1))
        for step, adapted in enumerate(iterates):
            last = order > 0 and step == steps
            yield {name: _Displaced.apply(start[name], value) for name, value in adapted.items()} if last else adapted


class ReptileSolver(TaskSolver):
    """Takes gradient steps of fixed sizes, and hands their way to the outer optimiser as the gradient.

    Args:
        steps: takes the steps.

    Example:
        >>> from metalearn import MLP, Reptile
        >>> from metalearn.inner.solvers import ReptileSolver
        >>> isinstance(Reptile(MLP(), loss="mse", inner_lr=0.01).solver, ReptileSolver)
        True
    """

    def __init__(self, steps: GradientSteps) -> None:
        super().__init__()
        self.steps = steps
        self._method = ReptileMethod(steps.method())

    @property
    def step_sizes(self) -> InnerStepSizes:
        """The sizes of every step for every tensor."""
        return self.steps.step_sizes

    def method(self) -> InnerMethod:
        return self._method

    def settings(self, tensors: Params) -> Settings:
        """The step size of each tensor at every step."""
        return self.steps.settings(tensors)


class _Displaced(torch.autograd.Function):
    """The end of a way from ``start``; its backward pass gives ``start - end`` to ``start``."""

    @staticmethod
    def forward(ctx: Any, start: Tensor, end: Tensor) -> Tensor:
        ctx.save_for_backward(start, end)
        return end.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None]:
        start, end = ctx.saved_tensors
        return start - end, None
