"""The buyer with limits, against a solver for constraints and Newton's method on the smooth problem."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from metalearn.bilevel import hypergradient
from tests.examples.scripts import load_example

pytestmark = pytest.mark.documents

example = load_example("smoothed_constraints")
PRICES = [0.2, 0.7, 1.6, 2.3]
"""One for each set of limits that bind."""


def buy(price: float) -> np.ndarray:
    """``y*`` by sequential quadratic programming."""
    quadratic, wish = example.Q.numpy(), example.WISH.numpy() - np.array([price, 0.0, 0.0])
    done = minimize(
        lambda y: y @ quadratic @ y / 2 - wish @ y,
        np.full(3, 0.5),
        jac=lambda y: quadratic @ y - wish,
        bounds=[(0, None)] * 3,
        constraints={"type": "ineq", "fun": lambda y: 2.2 - y.sum(), "jac": lambda y: -np.ones(3)},
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 200},
    )
    return done.x


def buy_smoothly(price: float, t: float) -> Tensor:
    """The smooth problem's ``y*`` by damped Newton steps."""
    wish = example.WISH - torch.tensor([price, 0.0, 0.0], dtype=torch.float64)
    rows = torch.tensor([[1.0, 1, 1], [-1, 0, 0], [0, -1, 0], [0, 0, -1]]).double()
    bound = torch.tensor([2.2, 0, 0, 0]).double()

    def loss(y: Tensor) -> Tensor:
        excess = rows @ y - bound
        penalty = 5.0 / t * torch.logaddexp(t * excess, torch.zeros(4).double()).sum()
        return y @ example.Q @ y / 2 - wish @ y + penalty

    y = torch.full((3,), 0.5).double()
    for _ in range(60):
        slope = torch.func.grad(loss)(y)
        if slope.norm() < 1e-13:
            break
        step, size = torch.linalg.solve(torch.autograd.functional.hessian(loss, y), slope), 1.0
        while size > 1e-6 and loss(y - size * step) > loss(y):
            size /= 2
        y = y - size * step
    return y


@pytest.mark.parametrize("price", PRICES)
def test_the_exact_solution_and_its_derivative(price: float) -> None:
    y, slope, _ = example.solve_exactly(torch.tensor([price]).double())
    np.testing.assert_allclose(y, buy(price), atol=1e-7)
    np.testing.assert_allclose(slope, (buy(price + 1e-3) - buy(price - 1e-3)) / 2e-3, atol=1e-4)


def test_each_of_these_prices_has_limits_of_its_own() -> None:
    assert len({example.solve_exactly(torch.tensor([price]).double())[2] for price in PRICES}) == len(PRICES)


@pytest.mark.parametrize("t", [3, 30])
def test_the_smooth_hypergradient(t: int) -> None:
    prices = torch.tensor(PRICES).double()[:, None]
    result = hypergradient(example.make_problem(t, len(PRICES)), prices, estimator=example.make_estimator(t))

    def earn(price: float) -> float:
        return price * float(buy_smoothly(price, t)[0])

    expected = [-(earn(price + 1e-4) - earn(price - 1e-4)) / 2e-4 for price in PRICES]
    np.testing.assert_allclose(result.value[:, 0], expected, atol=2e-6)


def test_its_error_falls_as_the_sharpness_grows_but_not_at_a_jump() -> None:
    prices = torch.tensor([[0.7], [1.6], [1.0617], [1.0621]]).double()  # the last two are on the two sides of a jump
    exact, _, jumps = example.measure_exactly(prices)
    assert 2 in jumps
    values = {
        t: hypergradient(example.make_problem(t, 4), prices, estimator=example.make_estimator(t)).value[:, 0]
        for t in (100, 400)
    }
    coarse, fine = ((values[t] - exact)[:2].abs().max() for t in (100, 400))
    assert 3 < coarse / fine < 5
    for value in values.values():
        assert exact[2] + 0.02 < value[2] < value[3] < exact[3] - 0.02


def test_the_price_that_earns_most_lies_on_a_jump() -> None:
    prices = torch.linspace(0.01, 2.44, 244).double()[:, None]
    _, _, jumps = example.measure_exactly(prices)
    best = int(np.argmax([float(price) * buy(float(price))[0] for price in prices]))
    assert best in jumps or best - 1 in jumps


def test_steps_on_the_smooth_problem_rest_at_its_best_price() -> None:
    best = max(np.linspace(1.15, 1.16, 11), key=lambda price: price * float(buy_smoothly(price, 30)[0]))
    learned = example.learn_price(30, torch.tensor([[best], [best - 0.1]]).double(), steps=2)[:, 0]
    assert learned[0].item() == pytest.approx(best, abs=1e-3)
    assert best - 0.1 < learned[1] < best - 0.05
