"""The network, and the four hypergradients of the search, against plain autograd loops and dense matrices."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.bilevel import AID, ITD, Estimator, GradientDescent, NormalCG, StocBiONeumann, hypergradient
from tests.examples.scripts import load_example

pytestmark = pytest.mark.documents

example = load_example("architecture_search")
INNER = GradientDescent(step_size=0.2, steps=2)


@pytest.fixture(autouse=True)
def _narrow_networks_in_doubles(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(example, "WIDTH", 2)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def draw_x() -> Tensor:
    return torch.randn(1, 3, 5, generator=torch.Generator().manual_seed(0))


def start_at() -> Tensor:
    weights = example.draw_weights(1, 100).values()
    return torch.cat([value.flatten() for value in weights]).requires_grad_()


def losses(x: Tensor, flat: Tensor) -> tuple[Tensor, Tensor]:
    """The outer and the inner loss of a vector of weights, written out."""
    shapes = {name: value[0].shape for name, value in example.draw_weights(1, 0).items()}
    parts = flat.split([math.prod(shape) for shape in shapes.values()])
    y = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
    shares = x.exp() / x.exp().sum(-1, keepdim=True)

    def edge(number: int, h: Tensor) -> Tensor:
        tanh = (h @ y["tanh"][number] + y["shift"][number]).tanh()
        operations = 0 * h, h, h @ y["linear"][number], tanh, h * (h @ y["gate"][number]).tanh()
        return torch.stack([share * value for share, value in zip(shares[number], operations, strict=True)]).sum(0)

    def cross_entropy(seed: int) -> Tensor:
        points, labels = example.draw_points(128, seed=seed)
        start = points @ y["stem"]
        return F.cross_entropy((edge(1, start) + edge(2, edge(0, start))) @ y["head"], labels)

    return cross_entropy(1), cross_entropy(0) + 0.003 * flat.square().sum()


def descend(x: Tensor, flat: Tensor, steps: int) -> Tensor:
    for _ in range(steps):
        flat = flat - 0.2 * torch.autograd.grad(losses(x, flat)[1], flat, create_graph=True)[0]
    return flat


def estimate(estimator: Estimator) -> Tensor:
    return hypergradient(example.make_problem(1), draw_x(), estimator=estimator).value[0]


def test_first_order_darts_is_the_direct_gradient() -> None:
    x = draw_x()[0].requires_grad_()
    (direct,) = torch.autograd.grad(losses(x, descend(x, start_at(), 2).detach())[0], x)
    solver = example.SEARCHES["first-order DARTS"].solver
    torch.testing.assert_close(estimate(AID(inner=INNER, solver=solver)), direct, rtol=1e-9, atol=1e-12)


def test_darts_goes_through_one_step() -> None:
    x = draw_x()[0].requires_grad_()
    before = descend(x, start_at(), 1).detach().requires_grad_()
    (through,) = torch.autograd.grad(losses(x, descend(x, before, 1))[0], x)
    assert example.SEARCHES["DARTS, one step"].truncate == 1
    torch.testing.assert_close(estimate(ITD(inner=INNER, truncate=1)), through, rtol=1e-9, atol=1e-12)


def solve_densely(is_series: bool) -> Tensor:
    """``grad_x f - J v``, where ``v`` is six terms of the series, or the solution of the system."""
    x = draw_x()[0].requires_grad_()
    flat = descend(x, start_at(), 2).detach().requires_grad_()
    direct, b = torch.autograd.grad(losses(x, flat)[0], (x, flat))
    hessian = torch.autograd.functional.hessian(lambda y: losses(x.detach(), y)[1], flat.detach())
    powers = [torch.linalg.matrix_power(torch.eye(len(b)) - 0.1 * hessian, power) @ b for power in range(6)]
    v = 0.1 * torch.stack(powers).sum(0) if is_series else torch.linalg.solve(hessian, b)
    slope = torch.autograd.grad(losses(x, flat)[1], flat, create_graph=True)[0]
    return direct - torch.autograd.grad(slope @ v, x)[0]


def test_the_implicit_ones_are_the_dense_series_and_the_dense_solution() -> None:
    series = estimate(StocBiONeumann(inner=INNER, eta=0.1, Q=5))
    torch.testing.assert_close(series, solve_densely(is_series=True), rtol=1e-9, atol=1e-12)
    solved = estimate(AID(inner=INNER, solver=NormalCG(tolerance=1e-9, max_iterations=5000)))
    torch.testing.assert_close(solved, solve_densely(is_series=False), rtol=1e-5, atol=1e-7)


def test_a_cell_is_a_straight_line_unless_a_curved_operation_is_reached() -> None:
    shares = F.one_hot(example.CELLS, len(example.OPERATIONS)).to(torch.float64)
    points, _ = example.draw_points(20, seed=3)
    logits = torch.func.vmap(example.classify, (0, 0, None))
    y = example.draw_weights(len(shares), seed=0)
    is_straight = (logits(shares, y, 2 * points) - 2 * logits(shares, y, points)).abs().amax((1, 2)) < 1e-9
    first, side, last = example.CELLS.T
    through_middle = (last < 3) & (first < 3) | (last == 0) | (last == 4) & (first == 0)  # a gate of zero is zero
    assert torch.equal(is_straight, (side < 3) & through_middle)
