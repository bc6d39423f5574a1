"""The network's rates and their hypergradient, against the optimality conditions, their sensitivity, and central differences."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from metalearn.bilevel import Exact, hypergradient
from tests.examples.scripts import load_example

pytestmark = pytest.mark.documents

example = load_example("network_utility")


def draw_weights() -> Tensor:
    return torch.randn(1, 6, generator=torch.Generator().manual_seed(0)).double() / 2


def compute_hypergradient(x: Tensor) -> Tensor:
    return hypergradient(example.make_problem(1), x, example.allocate(x), Exact()).value[0]


def true_loss(rates: Tensor) -> Tensor:
    """Written out by hand."""
    single, four, five = rates[:4], rates[4], rates[5]
    return -((1 + single).log().sum() + 3 / (1 + (4 - 4 * four).exp()) + 2 / (1 + (3.6 - 4 * five).exp()))


def test_the_rates_are_optimal() -> None:
    x = draw_weights()
    (rates,) = example.allocate(x)
    slack = example.CAPACITIES - example.ROUTES @ rates
    prices = example.BARRIER / slack
    assert (slack > 0).all()
    torch.testing.assert_close(x[0].exp() / rates, example.ROUTES.T @ prices, rtol=1e-6, atol=0)


def test_the_hypergradient_is_that_of_central_differences() -> None:
    x = draw_weights()
    differences = [
        (true_loss(example.allocate(x + unit)[0]) - true_loss(example.allocate(x - unit)[0])) / 2e-5
        for unit in 1e-5 * torch.eye(6).double()
    ]
    torch.testing.assert_close(compute_hypergradient(x), torch.stack(differences), rtol=1e-5, atol=1e-7)


def test_the_hypergradient_tends_to_the_sensitivity_of_the_hard_constraints(monkeypatch: pytest.MonkeyPatch) -> None:
    """``w / y = R' p``, ``R y = c`` is differentiated by ``w``, with all links full."""
    x = draw_weights()
    errors = []
    for barrier in (1e-3, 1e-5):
        monkeypatch.setattr(example, "BARRIER", barrier)
        (rates,) = example.allocate(x)
        weights, routes = x[0].exp(), example.ROUTES
        system = torch.zeros(10, 10).double()
        system[:6, :6], system[:6, 6:], system[6:, :6] = torch.diag(weights / rates**2), routes.T, routes
        change = torch.zeros(10, 6).double()
        change[:6] = torch.diag(weights / rates)
        response = torch.linalg.solve(system, change)[:6]
        exact = response.T @ torch.autograd.functional.jacobian(true_loss, rates)
        errors.append(float((compute_hypergradient(x) - exact).norm() / exact.norm()))
    assert errors[1] < 1e-4
    assert errors[1] < errors[0] / 50


def test_the_descent_from_proportional_fairness_ends_at_the_best_of_the_grid() -> None:
    _, landscape = example.make_grid()
    best = landscape.nan_to_num(-1).max()
    start = torch.zeros(1, 6).double()
    end = -true_loss(example.allocate(example.learn(start, steps=20)[-1])[0])
    assert -true_loss(example.allocate(start)[0]) < best - 1
    assert float(end) == pytest.approx(float(best), abs=2e-3)
