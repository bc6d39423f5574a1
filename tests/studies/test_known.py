"""Tasks of known smoothness: counts, gradients and boundaries against plain autograd and closed forms."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from metalearn import MAML, Batch, Episode
from metalearn.studies.known import FAMILIES, count_maml, find_gradient, make_module, predict_boundary
from metalearn.studies.step_size import grow
from tests.watched import Passes


class Watched(torch.nn.Module):
    """A linear network whose weights see how often a gradient goes through them."""

    def __init__(self, passes: Passes) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(1, 3, dtype=torch.float64))
        self.passes = passes

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.passes.watch(self.weight, "y").T


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("steps", [1, 4])
def test_counts_are_what_a_watching_loss_sees(steps: int, first_order: bool) -> None:
    passes = Passes()
    queries = torch.full((2, 5, 1), 7.0, dtype=torch.float64)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        name = "f" if bool((targets == 7.0).all()) else "g"
        return passes.watch((1 - torch.cos(outputs - targets)).sum(), name)

    module = MAML(Watched(passes), inner_steps=steps, inner_lr=0.1, first_order=first_order, loss=loss,
                  task="regression", execution="sequential", kernels=False)  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(2, 5, size, generator=generator, dtype=torch.float64) for size in (3, 1))
    episode = Episode(Batch(x, y), Batch(x, queries))
    find_gradient(module, episode)
    passes.through.clear()
    find_gradient(module, episode)
    counted = count_maml(2, steps, first_order)
    assert passes.through["f"] == counted.gc_f == 2
    assert passes.through["g"] == counted.gc_g == 2 * steps
    # a gradient of g, one of f, and each product with the Hessian go back through the weights
    assert passes.through["y"] == counted.gc_g + counted.gc_f + counted.hvp


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_is_that_of_a_plain_loop(family: str) -> None:
    episode, start = FAMILIES[family].tasks(seed=3, tasks=4)
    loss, norm = find_gradient(make_module(family, 3, 0.2, start), episode)
    weight = start.clone().requires_grad_()
    losses = []
    for x, support, query in zip(episode.support.x, episode.support.y, episode.query.y, strict=True):
        w = weight
        for _ in range(3):
            (step,) = torch.autograd.grad(write_out(family, x @ w - support[:, 0]), w, create_graph=True)
            w = w - 0.2 * step
        losses.append(write_out(family, x @ w - query[:, 0]))
    mean = torch.stack(losses).mean()
    (gradient,) = torch.autograd.grad(mean, weight)
    assert loss == pytest.approx(float(mean.detach()), rel=1e-9)
    assert norm == pytest.approx(float(gradient.norm()), rel=1e-9)


def write_out(family: str, errors: Tensor) -> Tensor:
    """The loss of a family's errors."""
    return (errors**2).sum() / 2 if family == "convex" else len(errors) - errors.cos().sum()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_smoothness_is_one(family: str) -> None:
    episode, start = FAMILIES[family].tasks(seed=1, tasks=3)
    largest = []
    for scale in (0.0, 1.0, 10.0):
        for x, support in zip(episode.support.x, episode.support.y, strict=True):
            hessian = torch.autograd.functional.hessian(
                lambda w, x=x, y=support: write_out(family, x @ w - y[:, 0]), scale * start
            )
            largest.append(float(torch.linalg.eigvalsh(hessian).abs().max()))
    assert max(largest) <= 1 + 1e-12
    assert max(largest) > 0.95


@pytest.mark.parametrize("steps", [1, 4])
def test_quadratic_tasks_diverge_where_their_hessian_says(steps: int) -> None:
    """The meta-objective's Hessian is the mean of ``M^N H M^N`` with ``M = I - alpha H``."""
    episode, _ = FAMILIES["convex"].tasks(seed=0, tasks=5)
    hessians = episode.support.x.mT @ episode.support.x

    def largest(size: float) -> float:
        power = torch.linalg.matrix_power(torch.eye(10, dtype=torch.float64) - size * hessians, steps)
        return float(torch.linalg.eigvalsh((power @ hessians @ power).mean(0)).max())

    low, high = 1.0, 10.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if largest(middle) <= 2 else (low, middle)
    assert grow("convex", steps, 0.99 * low, 0, 1.0, 150, 5) < 1
    assert grow("convex", steps, 1.01 * low, 0, 1.0, 150, 5) > 1
    assert 1 <= low / predict_boundary("convex", steps, 1.0) <= 2


@pytest.mark.parametrize("steps", [1, 2, 16])
def test_the_worst_case_diverges_where_it_is_predicted(steps: int) -> None:
    """At a maximum of the support loss, ``w_N - c`` grows by ``(1 + alpha L)^N``, and the curvature by its square."""
    boundary = predict_boundary("worst", steps, 1.0)
    assert (1 + boundary) ** (2 * steps) == pytest.approx(2)
    assert grow("worst", steps, 0.9 * boundary, 0, 1.0, 80, 5) < 1
    assert grow("worst", steps, 1.1 * boundary, 0, 1.0, 80, 5) > 1
