"""Contractions and step sizes against solvers that run on quadratics, written out."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from metalearn.bilevel import heavy_ball, inner_steps, nesterov
from metalearn.errors import ConfigError
from metalearn.theory import (
    accelerated_contraction,
    anil_contraction,
    anil_convex_step,
    anil_nonconvex_step,
    best_step,
    cg_error,
    contraction,
    heavy_ball_contraction,
    inner_growth,
    inner_step_limit,
)
from tests.theory.made import DOUBLE

MU, L = 0.5, 20.0
CURVATURES = torch.logspace(math.log10(MU), math.log10(L), 12, dtype=DOUBLE)
"""The eigenvalues of ``A`` for the loss ``y'Ay/2``, whose basis they are given in."""


def descend(step_size: float, steps: int, momentum: float = 0.0, ahead: bool = False) -> list[Tensor]:
    """The points of gradient descent with momentum, from the ones; ``ahead``: the gradient is that of the next point."""
    y = last = torch.ones(len(CURVATURES), dtype=DOUBLE)
    points = [y]
    for _ in range(steps):
        moved = y + momentum * (y - last)
        y, last = moved - step_size * CURVATURES * (moved if ahead else y), y
        points.append(y)
    return points


def worst_factor(step_size: float, steps: int) -> float:
    """By how much steps shrink the entry that they shrink least."""
    return float(descend(step_size, steps)[-1].abs().max())


@pytest.mark.parametrize("step_size", [0.01, 0.05, 0.09, 0.11])
def test_gradient_descent_contracts_as_predicted(step_size: float) -> None:
    for steps in (1, 7):
        assert worst_factor(step_size, steps) == pytest.approx(
            contraction(mu=MU, L=L, step_size=step_size, steps=steps)
        )


def test_the_step_size_from_which_gradient_descent_diverges() -> None:
    limit = inner_step_limit(L=L)
    assert worst_factor(0.999 * limit, 5000) < 1e-3
    assert worst_factor(1.001 * limit, 5000) > 1e3


def test_no_step_size_contracts_faster_than_the_best() -> None:
    best = best_step(mu=MU, L=L)
    least = worst_factor(best, 1)
    assert least == pytest.approx((L - MU) / (L + MU))
    assert all(worst_factor(best * factor, 1) > least for factor in (0.5, 0.99, 1.01, 1.5))


def test_how_many_steps_a_factor_takes() -> None:
    """No fewer steps would do, for the entry that shrinks least."""
    for factor in (1.5, 10.0, 1e6):
        steps = inner_steps(contraction(mu=MU, L=L, step_size=0.09), factor)
        assert worst_factor(0.09, steps) <= 1 / factor < worst_factor(0.09, steps - 1)


def test_what_the_step_of_anil_contracts() -> None:
    """Below its bound, which is ``sqrt(1 - 2 a mu + a^2 L^2)``, and slower than the best step size."""
    size = anil_convex_step(mu=MU, L=L)
    bound = anil_contraction(mu=MU, L=L)
    assert bound == pytest.approx(math.sqrt(1 - 2 * size * MU + size**2 * L**2))
    assert all(math.sqrt(1 - 2 * other * MU + other**2 * L**2) > bound for other in (0.9 * size, 1.1 * size))
    assert worst_factor(best_step(mu=MU, L=L), 1) < worst_factor(size, 1) == pytest.approx(1 - (MU / L) ** 2)
    assert worst_factor(size, 1) <= bound
    assert anil_contraction(kappa=10.0) == pytest.approx(0.995, abs=5e-4)


def test_the_nonconvex_step_keeps_the_growth_below_e() -> None:
    for steps in (1, 3, 30, 3000):
        assert inner_growth(L=L, step_size=anil_nonconvex_step(L=L, steps=steps), steps=steps) < math.e


def test_nesterov_stays_below_its_bound() -> None:
    rule = nesterov(mu=MU, L=L)
    points = descend(rule.step_size, 60, rule.momentum, ahead=True)
    factor = accelerated_contraction(mu=MU, L=L)
    first = math.sqrt(1 + L / MU) * float(points[0].norm())
    assert all(float(y.norm()) <= first * factor**step for step, y in enumerate(points))
    assert accelerated_contraction(kappa=L / MU) < contraction(mu=MU, L=L, step_size=best_step(mu=MU, L=L))


def test_the_heavy_ball_contracts_as_predicted() -> None:
    """The last 200 of 1,000 steps: the root of the momentum, which no other momentum beats."""
    rule = heavy_ball(mu=MU, L=L)
    factor = heavy_ball_contraction(mu=MU, L=L)
    assert factor == pytest.approx(math.sqrt(rule.momentum))

    def measure(momentum: float) -> float:
        points = descend(rule.step_size, 300, momentum)
        return float((points[300].norm() / points[200].norm()) ** (1 / 100))

    assert measure(rule.momentum) == pytest.approx(factor, rel=0.02)
    assert all(measure(rule.momentum + change) > factor for change in (-0.1, 0.1))


def test_conjugate_gradients_stay_below_their_bound() -> None:
    solution = torch.ones(len(CURVATURES), dtype=DOUBLE)
    v = torch.zeros_like(solution)
    residual = direction = CURVATURES * solution
    first = float((CURVATURES * solution**2).sum().sqrt())
    for iteration in range(1, 13):
        curved = CURVATURES * direction
        size = residual @ residual / (direction @ curved)
        v, before = v + size * direction, residual
        residual = residual - size * curved
        direction = residual + residual @ residual / (before @ before) * direction
        error = float((CURVATURES * (v - solution) ** 2).sum().sqrt())
        assert error <= cg_error(iterations=iteration, mu=MU, L=L) * first
    assert error < 1e-8 * first


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: contraction(mu=3.0, L=2.0, step_size=0.1), r"contraction\(mu=3, L=2\), but mu must be at most L; swap"),
        (lambda: nesterov(mu=3.0, L=2.0), r"nesterov\(mu=3, L=2\), but mu must be at most L; swap them"),
        (lambda: heavy_ball(mu=0.0, L=2.0), r"heavy_ball\(mu=0.0\), but it must be a finite number above 0; use 1.0"),
        (lambda: inner_steps(1.0, 2.0), r"inner_steps\(contraction=1.0\), but .* below 1; use 0.5, or check mu and L"),
        (lambda: inner_steps(0.5, 0.5), r"inner_steps\(factor=0.5\), but .* of at least 1; use 10.0"),
        (lambda: best_step(mu=-1.0, L=2.0), r"best_step\(mu=-1.0\), but it must be a finite number above 0; use 1.0"),
        (lambda: inner_step_limit(L=0.0), r"inner_step_limit\(L=0.0\), but it must be"),
        (lambda: cg_error(iterations=2, kappa=0.5), r"cg_error\(kappa=0.5\), but .* of at least 1; use 10.0"),
        (lambda: cg_error(iterations=2), r"cg_error has no condition number, but it needs one; give kappa=10.0"),
        (lambda: cg_error(iterations=2, mu=1.0), r"cg_error has mu but no L, but kappa = L/mu needs both; give L"),
        (
            lambda: cg_error(iterations=2, kappa=5.0, mu=1.0, L=10.0),
            r"cg_error has kappa=5, but L/mu = 10/1 is 10; leave kappa out",
        ),
        (lambda: cg_error(iterations=-1, kappa=5.0), r"cg_error\(iterations=-1\), but"),
    ],
)  # fmt: skip
def test_wrong_constants_are_one_line(call: Callable[[], float], line: str) -> None:
    with pytest.raises(ConfigError, match=line) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_condition_number_beside_constants_that_agree() -> None:
    assert cg_error(iterations=3, kappa=9.0, mu=1.0, L=9.0) == cg_error(iterations=3, kappa=9.0)
