"""The scales of features, against ridge regression in closed form and a grid."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from metalearn.bilevel import AID, CG, L1, Nesterov, hypergradient
from tests.examples.scripts import load_example

pytestmark = pytest.mark.documents

example = load_example("sparse_features")


def draw(seeds: int, **sizes: int) -> tuple[Tensor, tuple, tuple]:
    truths, train, val, _ = zip(*(example.draw_data(seed, **sizes) for seed in range(seeds)), strict=True)
    return torch.stack(truths), example.stack(train), example.stack(val)


def measure(x: Tensor, train: tuple, val: tuple) -> Tensor:
    """The validation error of every seed, with ridge regression by a linear system."""
    inputs, targets = train
    scaled = inputs * x[:, None]
    count, size = inputs.shape[1:]
    y = torch.linalg.solve(
        scaled.mT @ scaled / count + 0.1 * torch.eye(size).double(), (scaled.mT @ targets[..., None]) / count
    )
    residual = (val[0] * x[:, None]) @ y - val[1][..., None]
    return residual.square().mean((1, 2)) / 2


def test_the_hypergradient() -> None:
    _, train, val = draw(2, features=8, relevant=2, examples=20)
    x = torch.linspace(0.2, 1.4, 16).double().view(2, 8).requires_grad_()
    estimator = AID(inner=Nesterov(step_size=0.04, momentum=0.8, tolerance=1e-12), solver=CG(tolerance=1e-12))
    value = hypergradient(example.make_problem(train, val), x.detach(), estimator=estimator).value
    (expected,) = torch.autograd.grad(measure(x, train, val).sum(), x)
    torch.testing.assert_close(value, expected, rtol=1e-8, atol=1e-9)


def test_a_run_ends_where_no_proximal_step_leads_away() -> None:
    truth, train, val = draw(2, features=8, relevant=2, examples=40)
    done = example.learn_scales(example.make_problem(train, val), L1(0.1), steps=120, features=8)
    x = done.x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(measure(x, train, val).sum(), x)
    kept = done.x != 0
    assert kept.equal(truth != 0)
    torch.testing.assert_close(slope[kept], -0.1 * done.x[kept].sign(), rtol=0, atol=1e-4)
    assert slope[~kept].abs().max() < 0.1


def test_orthogonal_features_have_the_best_scales_of_a_grid() -> None:
    """Without noise, and with ``X'X = n``, every scale has a problem of its own."""
    inputs = 4**0.5 * torch.eye(4).double()
    truth = torch.tensor([1.5, -1.0, 0.6, 0.0]).double()
    examples = inputs[None], (inputs @ truth)[None]
    x = example.learn_scales(example.make_problem(examples, examples), L1(0.05), steps=80, features=4).x[0]
    grid = torch.linspace(0, 3, 30_001).double()[:, None]
    phi = (truth * (1 - grid**2 / (grid**2 + 0.1))).square() / 2 + 0.05 * grid
    torch.testing.assert_close(x, grid[phi.argmin(0), 0], rtol=0, atol=2e-3)


def test_the_score_and_the_error() -> None:
    truth = torch.tensor([[1.0, 0, 0, 2.0]]).double()
    inputs = torch.eye(4).double()[None]
    score, error = example.judge(torch.tensor([[1.0, 1.0, 0, 0]]).double(), truth, (inputs, inputs[0] @ truth[0]))
    assert score.item() == pytest.approx(2 * 1 / (2 * 1 + 1 + 1))
    assert error.item() == pytest.approx((1 + 4) / 4)


def test_l0_minimises_its_own_problem() -> None:
    grid = torch.linspace(-3, 3, 60_001, dtype=torch.float64)
    for x in (-1.7, -0.4, 0.5, 2.0):
        value = example.L0(0.3)(torch.tensor([x]).double(), 0.8)
        cost = 0.3 * (grid.abs() > 1e-9) + (grid - x).square() / (2 * 0.8)
        assert value.item() == pytest.approx(grid[cost.argmin()].item(), abs=1e-4)
    assert example.L0(0.3).value(torch.tensor([0.0, 2.0, -1.0])).item() == pytest.approx(0.6)
