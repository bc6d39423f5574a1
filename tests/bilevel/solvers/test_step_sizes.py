"""The rules for step sizes against problems whose smoothness is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from metalearn.bilevel import (
    AID,
    CG,
    ITD,
    BilevelProblem,
    Constants,
    GradientDescent,
    StocBiONeumann,
    aid_bio,
    hypergradient,
    itd_bio,
    smoothness_of_phi,
    stoc_bio,
)
from tests.bilevel.made import DOUBLE


def test_the_bound_on_the_smoothness_of_phi_holds_where_that_in_print_does_not() -> None:
    """``f = M y`` with ``M`` far below 1 and ``g = s y^2/2 - s x y + a x^2 y/2 + b x y^2/2 + c y^3/6`` near 0, where
    ``Phi'' = -(M/s)(a + 2 b + c)``; all constants are those of ``|x| <= d``, ``|y| <= 2 d``."""
    s, M, a, b, c, d = 1e-3, 0.01, 1.0, 0.268, 0.155, 1e-7

    def inner(x: Tensor, y: Tensor, _: object) -> Tensor:
        return s * y * y / 2 - s * x * y + a * x * x * y / 2 + b * x * y * y / 2 + c * y**3 / 6

    def gradient(x: float) -> float:
        y = x
        for _ in range(30):  # Newton's method
            y -= (s * y - s * x + a * x * x / 2 + b * x * y + c * y * y / 2) / (s + b * x + c * y)
        assert abs(y) <= 2 * d
        problem = BilevelProblem(lambda x, y, _: M * y, inner, lambda _: torch.tensor(y, dtype=DOUBLE))
        point = torch.tensor(x, dtype=DOUBLE)
        assert abs(float(torch.func.grad(inner, 1)(point, problem.init_inner(point), None))) < 1e-15
        return float(hypergradient(problem, point, None, AID(solver=CG(iterations=1))).value)

    smoothness = abs(gradient(d) - gradient(-d)) / (2 * d)
    assert smoothness == pytest.approx(M / s * (a + 2 * b + c), rel=1e-3)
    mu, L = s - b * d - 2 * c * d, s + (a + 2 * b + 2 * c) * d
    rho_J, rho_H = (a * a + b * b) ** 0.5, (b * b + c * c) ** 0.5
    bound = smoothness_of_phi(Constants(mu=mu, L=L, M=M, rho_J=rho_J, rho_H=rho_H))
    printed = bound - rho_J * (M - M * M) / mu
    assert printed < 0.995 * smoothness
    assert smoothness <= bound < 2 * smoothness


@pytest.mark.parametrize("factor", [1e-3, 1.0, 1e3])
def test_the_bound_scales_with_f(factor: float) -> None:
    """``f`` in other units gives ``Phi`` in the same units; ``mu`` and ``L`` are those of ``g``, which is not scaled, so that the
    terms with ``M`` alone are left where ``L`` of ``f`` is 0 beside them."""
    mu, L, rho_J, rho_H = 0.5, 1.0, 0.3, 0.2

    def of(M: float) -> float:
        return smoothness_of_phi(Constants(mu=mu, L=L, M=M, rho_J=rho_J, rho_H=rho_H)) - smoothness_of_phi(
            Constants(mu=mu, L=L, M=0.0, rho_J=rho_J, rho_H=rho_H)
        )

    assert of(factor) == pytest.approx(factor * of(1.0), rel=1e-9)
    assert of(1.0) == pytest.approx(0.3 / 0.5 + (0.2 + 0.3) / 0.25 + 0.2 / 0.125)


def test_the_rules_of_bio_at_a_condition_number_of_4() -> None:
    """By hand: ``1 - mu/L = 3/4``, 9 steps of which make a tenth and 25 a thousandth; CG's 1/3, 3 of which a 20th."""
    constants = Constants(mu=1.0, L=4.0, L_phi=2.0)
    aid, itd, stoc = aid_bio(constants), itd_bio(constants), stoc_bio(constants, batch=8)
    assert [each.step_size for each in (aid, itd, stoc)] == [0.125] * 3
    assert isinstance(aid.estimator, AID)
    assert isinstance(itd.estimator, ITD)
    assert isinstance(stoc.estimator, StocBiONeumann)
    assert aid.estimator.inner == GradientDescent(step_size=0.25, steps=9)
    assert aid.estimator.solver == CG(iterations=3)
    assert itd.estimator.inner == GradientDescent(step_size=0.25, steps=25)
    assert stoc.estimator.inner == GradientDescent(step_size=0.4, steps=5)
    assert (stoc.estimator.eta, stoc.estimator.Q, stoc.estimator.batch) == (0.25, 8, 8)
    other = stoc_bio(constants, batch=8, eta=0.125, step_size=0.5)
    assert isinstance(other.estimator, StocBiONeumann)
    assert (other.estimator.eta, other.estimator.Q, other.step_size) == (0.125, 17, 0.5)
