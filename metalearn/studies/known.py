"""Tasks whose support loss has a smoothness constant ``L`` of exactly 1, and where gradient descent over them diverges.

A step size on these tasks is therefore ``alpha L``, and an outer step size ``beta L``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metalearn.bilevel import OracleCounts
from metalearn.episode import Batch, Episode
from metalearn.modules import MAML, MetaModule
from metalearn.theory import maml_divergence_step

__all__ = ["FAMILIES", "Family", "count_maml", "find_gradient", "make_module", "predict_boundary"]

SIZE = 10
"""Weights of a task."""
LEAST = 0.1
"""The least curvature of a quadratic task over its largest."""


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """``1/2 sum (o - y)^2``."""
    return 0.5 * (outputs - targets).square().sum()


def cosine_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """``sum (1 - cos(o - y))``, whose second derivatives lie between -1 and 1, and take both values."""
    return (1 - torch.cos(outputs - targets)).sum()


@dataclass(frozen=True)
class Family:
    """Tasks of one kind: the outputs are ``x w``, and ``w`` is all that there is to learn.

    Attributes:
        title: what the tasks are.
        loss: of outputs and targets.
        draw: gives, for a generator and a number of tasks, the inputs ``[B, n, n]``, the targets ``[B, n, 1]`` of the support and
            of the query set, and the start ``[n]`` of ``w``.
    """

    title: str
    loss: Callable[[Tensor, Tensor], Tensor]
    draw: Callable[[torch.Generator, int], tuple[Tensor, Tensor, Tensor, Tensor]]

    def tasks(self, seed: int, tasks: int) -> tuple[Episode, Tensor]:
        """Return the tasks of a seed, and where their outer loop starts; all in float64."""
        inputs, support, query, start = self.draw(torch.Generator().manual_seed(seed), tasks)
        return Episode(Batch(inputs, support), Batch(inputs, query)), start


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _draw_quadratics(generator: torch.Generator, tasks: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Curvatures from 0.1 to 1, each task's times a number from 0.7 to 1, in the same rotated axes."""
    axes = torch.linalg.qr(_normal(generator, SIZE, SIZE))[0]
    curvatures = torch.logspace(math.log10(LEAST), 0, SIZE, dtype=torch.float64)
    scales = 0.7 + 0.3 * torch.rand(tasks, generator=generator, dtype=torch.float64)
    scales[0] = 1.0
    inputs = (scales[:, None] * curvatures).sqrt()[:, :, None] * axes
    centres = _normal(generator, tasks, SIZE, 1)
    queries = centres + 0.1 * _normal(generator, tasks, SIZE, 1)
    return inputs, inputs @ centres, inputs @ queries, _normal(generator, SIZE)


def _draw_cosines(generator: torch.Generator, tasks: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Each task with axes and a minimum of its own, and queries near it."""
    inputs = torch.linalg.qr(_normal(generator, tasks, SIZE, SIZE))[0]
    support = inputs @ _normal(generator, tasks, SIZE, 1)
    return inputs, support, support + 0.3 * _normal(generator, tasks, SIZE, 1), _normal(generator, SIZE)


def _draw_saddles(generator: torch.Generator, tasks: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Every task's query loss has its minimum where its support loss has its maximum."""
    inputs = torch.eye(SIZE, dtype=torch.float64).expand(tasks, SIZE, SIZE).contiguous()
    support = 0.05 * _normal(generator, tasks, SIZE, 1)
    return inputs, support, support + math.pi, math.pi + 0.1 * _normal(generator, SIZE)


FAMILIES: dict[str, Family] = {
    "convex": Family("quadratic tasks", squared_error, _draw_quadratics),
    "worst": Family("worst case: queries at a maximum of the support loss", cosine_error, _draw_saddles),
    "typical": Family("cosine tasks, queries near the support", cosine_error, _draw_cosines),
}


def predict_boundary(family: str, steps: int, outer: float) -> float:
    """Return the ``alpha L`` above which gradient descent on the meta-objective diverges, from ``L`` alone.

    Args:
        family: ``"convex"`` or ``"worst"``, whose support losses bend down.
        steps: inner steps ``N``.
        outer: ``beta L``, below 2.
    """
    least = 0.0 if family == "convex" else None
    return maml_divergence_step(L=1.0, steps=steps, outer_step_size=outer, mu=least)


def make_module(family: str, steps: int, step_size: float, start: Tensor) -> MAML:
    """Return MAML on one of the families."""
    network = nn.Linear(SIZE, 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        network.weight.copy_(start[None])
    return MAML(network, inner_steps=steps, inner_lr=step_size, loss=FAMILIES[family].loss, task="regression")


def find_gradient(module: MetaModule, episode: Episode) -> tuple[float, float]:
    """Leave the meta-gradient at the parameters, and return the meta-loss and the gradient's norm."""
    module.zero_grad()
    loss = module.meta_loss(episode).loss
    loss.backward()
    squares = [float(value.grad.double().square().sum()) for value in module.parameters() if value.grad is not None]
    return float(loss.detach()), math.sqrt(sum(squares))


def count_maml(tasks: int, inner_steps: int, first_order: bool = False) -> OracleCounts:
    """Return what an outer step of MAML costs: ``f`` is the query loss, ``g`` the support loss, ``y`` all that adapts.

    A task takes one gradient of ``f`` and ``N`` gradients of ``g``, and backwards through each step one product with the Hessian
    of ``g``. First-order MAML takes none of these.
    """
    return OracleCounts(gc_f=tasks, gc_g=tasks * inner_steps, hvp=0 if first_order else tasks * inner_steps)
