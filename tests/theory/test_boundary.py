"""Where training of multi-step MAML diverges: predicted from L, the steps and the outer step size, and measured by training."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from metalearn.errors import ConfigError
from metalearn.theory import inner_step_limit, maml_divergence_step, maml_inner_step
from tests.theory.made import DOUBLE

L, OUTER, STEPS = 4.0, 0.25, (1, 2, 4, 8, 16)
"""The outer step size is ``1/L``."""


def draw_matrices(values: list[float], generator: torch.Generator, basis: Tensor | None = None) -> Tensor:
    """Symmetric ``[8, 3, 3]`` with these eigenvalues, each of a basis of its own or of a common one."""
    if basis is None:
        basis = torch.linalg.qr(torch.randn(8, 3, 3, generator=generator, dtype=DOUBLE))[0]
    return basis @ (torch.tensor(values, dtype=DOUBLE) * basis).mT.expand(8, 3, 3)


def measure_boundary(support: Tensor, query: Tensor, steps: int, predicted: float) -> float:
    """The least of 75 inner step sizes with which training on the mean over tasks diverges, all tried side by side.

    They lie 3 % apart, from a third of the predicted one to three times it. Losses are ``w'Aw/2``. A run diverges if it ends
    farther from the solution than it began.
    """
    sizes = predicted * torch.exp(torch.linspace(-1.1, 1.1, 75, dtype=DOUBLE))
    w = torch.ones(len(sizes), 3, dtype=DOUBLE)
    for _ in range(40):
        start = w.clone().requires_grad_()
        u = start[:, None, :].expand(-1, len(support), -1)
        for _ in range(steps):
            loss = torch.einsum("rti,tij,rtj->", u, support, u) / 2
            (slope,) = torch.autograd.grad(loss, u, create_graph=True)
            u = u - sizes[:, None, None] * slope
        meta_loss = torch.einsum("rti,tij,rtj->", u, query, u) / (2 * len(support))
        w = (w - OUTER * torch.autograd.grad(meta_loss, start)[0]).clamp(-1e100, 1e100)
    diverged = w.norm(dim=-1) > 3**0.5
    return float(sizes[diverged].min()) if bool(diverged.any()) else float("inf")


@pytest.mark.parametrize("low", [0.1, -L], ids=["convex", "indefinite"])
@pytest.mark.parametrize("steps", STEPS)
def test_training_diverges_where_it_is_predicted(steps: int, low: float) -> None:
    """To 5 % for the worst task, within a factor of 2 for tasks that bend down in one direction, and for no task earlier.

    Query losses are convex, so that there is a solution. Support losses may bend down.
    """
    generator = torch.Generator().manual_seed(steps)
    predicted = maml_divergence_step(L=L, steps=steps, outer_step_size=OUTER, mu=low)
    worst = torch.diag(torch.tensor([low, 0.5, L], dtype=DOUBLE))[None]
    assert measure_boundary(worst, L * torch.eye(3, dtype=DOUBLE)[None], steps, predicted) == pytest.approx(
        predicted, rel=0.05
    )
    common = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=DOUBLE))[0]
    query = draw_matrices([L / 2, 3 * L / 4, L], generator)
    together = measure_boundary(draw_matrices([low, 0.5, L], generator, common), query, steps, predicted)
    assert predicted / 1.05 <= together <= 2 * predicted
    if steps <= 4:
        apart = measure_boundary(draw_matrices([low, 0.5, L], generator), query, steps, predicted)
        assert apart >= predicted / 1.05


def test_how_the_boundary_falls() -> None:
    """As ``1/N`` where losses may bend down, to ``2/L`` where they do not; the proven step size is below both."""
    for steps in (1, 2, 16, 1000):
        convex = maml_divergence_step(L=L, steps=steps, outer_step_size=OUTER, mu=0.0)
        any_loss = maml_divergence_step(L=L, steps=steps, outer_step_size=OUTER)
        assert convex > inner_step_limit(L=L)
        assert maml_inner_step(L=L, steps=steps) < any_loss < convex
    assert convex == pytest.approx(inner_step_limit(L=L), rel=1e-3)
    assert 1000 * any_loss * L == pytest.approx(0.5 * 0.6931, rel=1e-3)


@pytest.mark.parametrize("mu", [-3.9, -0.5, -0.01, 0.0, 1.0, 4.0])
def test_at_the_boundary_the_outer_step_is_as_large_as_it_may_be(mu: float) -> None:
    """``b L q^(2N) = 2``, and more beyond it, with ``q`` of the curvature that a step stretches most."""
    size = maml_divergence_step(L=L, steps=3, outer_step_size=OUTER, mu=mu)

    def stretch(step_size: float) -> float:
        return max(abs(1 - step_size * curvature) for curvature in (mu, L)) ** 6

    assert pytest.approx(2) == OUTER * L * stretch(size)
    assert OUTER * L * stretch(1.01 * size) > 2 > OUTER * L * stretch(0.99 * size)


def test_an_outer_step_that_diverges_by_itself_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"outer_step_size=0.5\) is not below 2/L = 0.5, but .* use 0.25"):
        maml_divergence_step(L=4.0, steps=1, outer_step_size=0.5)
