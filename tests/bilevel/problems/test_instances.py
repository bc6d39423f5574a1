"""The worst cases: their solution by other means, and how iterations grow with the condition number."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from metalearn.bilevel import (
    AID,
    CG,
    Algorithm,
    BiO,
    GradientDescent,
    Quadratic,
    Run,
    WorstCase,
    acc_bio,
    acc_bio_bg,
    quadratic,
    run,
    simple_worst_case,
    worst_case,
)
from metalearn.errors import ConfigError
from tests.bilevel.made import DOUBLE, noise, relative


def z_matrix(size: int) -> Tensor:
    """As its definition reads."""
    z = torch.zeros(size, size, dtype=DOUBLE)
    for i in range(size):
        z[i, size - 1 - i] = 1
        if i:
            z[i, size - i] = -1
    return z


@pytest.mark.parametrize("coupling", [0.0, 0.7])
def test_solution_and_hessian_are_those_of_the_theory(coupling: float) -> None:
    size, mu_x, mu_y, smooth = 60, 0.2, 0.3, 0.8
    made = worst_case(size, mu_x=mu_x, mu_y=mu_y, L_inner=smooth, L_xy=coupling, L_inner_xy=0.9, L_x=0.9, L_y=1.1)
    z, eye = z_matrix(size), torch.eye(size, dtype=DOUBLE)
    square = z @ z
    assert torch.equal(square[1], torch.tensor([-1.0, 2, -1] + [0] * (size - 3), dtype=DOUBLE))
    a, b0 = (0.9 - mu_x) / 4, (smooth - mu_y) / 4
    inverse = torch.linalg.inv(b0 * square + mu_y * eye)
    curvature = (
        mu_x * eye + (a * mu_y + coupling * 0.9 / 2) * square @ inverse + 1.1 * 0.9**2 / 4 * square @ inverse @ inverse
    )
    x = noise(size)
    change = made.hypergradient(x) - made.hypergradient(0 * x)
    assert relative(change, curvature @ x) < 1e-12
    values = torch.linalg.eigvalsh(curvature)
    assert made.kappa_x == pytest.approx(float(values[-1] / values[0]))
    assert made.kappa_y == pytest.approx(smooth / mu_y, rel=1e-2)
    powers = made.ratio ** torch.arange(1, size + 1, dtype=DOUBLE)
    assert relative(made.solution, powers) < 1e-5
    assert made.hypergradient(made.solution).norm() < 1e-12


def test_the_losses_have_this_hypergradient() -> None:
    """By autograd through the inner solution in closed form, for both instances."""
    for made in (worst_case(12, mu_x=0.2, mu_y=0.3, L_xy=0.5), simple_worst_case(12, mu_x=0.2, mu_y=0.3)):
        x = noise(12).requires_grad_()
        y = made.inner_solution(x)
        leaf = y.detach().requires_grad_()
        assert torch.autograd.grad(made.problem.inner_loss(x.detach(), leaf, None), leaf)[0].norm() < 1e-12
        (found,) = torch.autograd.grad(made.problem.outer_loss(x, y, None), x)
        assert relative(found, made.hypergradient(x.detach())) < 1e-12


def test_the_simple_case_is_nesterovs_quadratic() -> None:
    made = simple_worst_case(150, mu_x=0.1, mu_y=0.3)
    kappa = 1 + 1 / (0.1 * 0.09)
    assert made.kappa_x == pytest.approx(kappa, rel=1e-2)  # of the infinite matrix
    assert made.ratio == pytest.approx((math.sqrt(kappa) - 1) / (math.sqrt(kappa) + 1))
    powers = made.ratio ** torch.arange(1, 151, dtype=DOUBLE)
    assert relative(made.solution, powers) < 1e-10


def test_the_support_grows_with_the_calls() -> None:
    """From 0, no coordinate can be reached before the calls that lead to it."""
    made = worst_case(80, mu_x=0.1, mu_y=0.2)
    found = run(made.problem, acc_bio_bg(made.problem.constants), torch.zeros(80, dtype=DOUBLE), 3)
    calls = _calls(found)
    reached = int((found.x != 0).nonzero().max()) + 1
    assert 1 < reached <= calls
    assert reached < 80


def _calls(found: Run) -> int:
    last = found.history[-1]
    return last.gc_f + last.gc_g + last.jvp + last.hvp


def steps_to(made: WorstCase, algorithm: Algorithm, tolerance: float = 1e-4) -> tuple[int, int]:
    """Outer steps, and oracle calls, until ``|x - x*| <= tolerance |x*|``."""
    found = run(
        made.problem, algorithm, torch.zeros_like(made.solution), 100_000,
        callback=lambda state, _: relative(algorithm.solution(state), made.solution) <= tolerance,
    )  # fmt: skip
    return found.state["step"], _calls(found)


def gradient_descent(made: WorstCase) -> BiO:
    constants = made.problem.constants
    assert constants.L is not None
    assert constants.L_phi is not None
    inner = GradientDescent(step_size=1 / constants.L, steps=1)
    return BiO(estimator=AID(inner=inner, solver=CG(iterations=1)), step_size=1 / constants.L_phi)


def slope(points: list[tuple[float, int]]) -> float:
    """Of the line through the logarithms, by least squares."""
    logs = torch.tensor(points, dtype=DOUBLE).log()
    centred = logs - logs.mean(0)
    return float((centred[:, 0] * centred[:, 1]).sum() / (centred[:, 0] ** 2).sum())


def made(mu: float) -> WorstCase:
    ratio = worst_case(2, mu_x=mu, mu_y=mu).ratio
    return worst_case(math.ceil(12 / (1 - ratio)), mu_x=mu, mu_y=mu)


@pytest.mark.parametrize(
    ("name", "mus", "expected"),
    [("gd", (0.33, 0.26, 0.2), 1.0), ("acc", (0.2, 0.15, 0.11), 0.5), ("bg", (0.2, 0.15, 0.11), 0.5)],
)
def test_iterations_grow_as_the_theory_says_and_never_beat_the_bound(
    name: str, mus: tuple[float, ...], expected: float
) -> None:
    points = []
    for mu in mus:
        case = made(mu)
        constants = case.problem.constants
        if name == "gd":
            algorithm: Algorithm = gradient_descent(case)
        else:
            algorithm = acc_bio(constants, accuracy=1e-4) if name == "acc" else acc_bio_bg(constants, factor=10)
        steps, calls = steps_to(case, algorithm)
        assert calls >= case.least_calls(1e-4)
        points.append((case.kappa_x, steps))
    assert slope(points) == pytest.approx(expected, abs=0.05), points


def test_quadratics_are_what_they_say() -> None:
    q = quadratic(5, 3, 40.0, seed=0)
    values = torch.linalg.eigvalsh(q.A)
    assert float(values[-1] / values[0]) == pytest.approx(40.0)
    x = noise(3).requires_grad_()
    (expected,) = torch.autograd.grad(q.outer_loss(x, q.solution(x), None), x)
    assert relative(q.hypergradient(x.detach()), expected) < 1e-12
    assert torch.equal(quadratic(5, 3, 40.0, seed=0).A, q.A)
    constants = q.constants
    zero = q.hypergradient(torch.zeros(3, dtype=DOUBLE))
    curvature = torch.stack([q.hypergradient(unit) - zero for unit in torch.eye(3, dtype=DOUBLE)], 1)
    of_phi = torch.linalg.eigvalsh((curvature + curvature.T) / 2)
    assert constants.L_phi == pytest.approx(float(of_phi[-1]))
    assert isinstance(q, Quadratic)


def test_constants_out_of_order_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"worst_case\(mu_x=2.*but mu_x < L_x.*lower mu_x and mu_y"):
        worst_case(10, mu_x=2.0, mu_y=0.1)
    with pytest.raises(ConfigError, match=r"simple_worst_case\(mu_x=0.*above 0; use 0.1"):
        simple_worst_case(10, mu_x=0.0, mu_y=0.1)
    with pytest.raises(ConfigError, match="kappa is 0.5, but it must be a finite number of at least 1; use 10"):
        quadratic(3, 2, 0.5, seed=0)
