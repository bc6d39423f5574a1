"""The errors of hypergradients against what estimators that are written out leave, on quadratics."""

from __future__ import annotations

import pytest
import torch

from metalearn.bilevel import AccBiO, accelerated_aid, quadratic, run
from metalearn.errors import ConfigError
from metalearn.theory import accelerated_contraction, bio_outer_step, itd_bias, neumann_bias, pzobo_error
from tests.theory.made import DOUBLE


def test_the_error_that_itd_keeps() -> None:
    """From the solution itself: the bound holds, and is attained along the eigenvector of the least curvature."""
    made = quadratic(size=6, outer_size=4, kappa=8.0, seed=0)
    known = made.constants
    x = torch.ones(4, dtype=DOUBLE, requires_grad=True)
    for steps, size in ((1, 0.3), (5, 0.3), (5, 1.9)):
        y = made.solution(x).detach()
        slope = float(made.partial(x.detach(), y)[1].norm())
        for _ in range(steps):
            y = y - size * (made.A @ y - made.C @ x - made.d)
        (estimate,) = torch.autograd.grad(made.outer_loss(x, y, None), x)
        error = float((estimate - made.hypergradient(x.detach())).norm())
        bound = itd_bias(mu=known.mu, L=known.L, L_xy=known.L_xy, gradient=slope, step_size=size, steps=steps)  # type: ignore[arg-type]
        assert 0 < error <= bound
    left = torch.linalg.matrix_power(torch.eye(6, dtype=DOUBLE) - 0.3 * made.A, 5) @ torch.linalg.inv(made.A)
    assert float(torch.linalg.matrix_norm(left, 2)) == pytest.approx(
        itd_bias(mu=known.mu, L=known.L, L_xy=1.0, gradient=1.0, step_size=0.3, steps=5)  # type: ignore[arg-type]
    )


def test_the_bias_of_the_series() -> None:
    """``eta sum_{q=0}^{Q} (I - eta A)^q b`` against ``A^-1 b``, with equality for an eigenvector."""
    matrix = quadratic(size=6, outer_size=4, kappa=8.0, seed=1).A
    values, vectors = torch.linalg.eigh(matrix)
    mu, L, eta = float(values[0]), float(values[-1]), 0.7
    for b in (torch.ones(6, dtype=DOUBLE), vectors[:, 0]):
        for terms in (0, 3, 9):
            v, power = torch.zeros_like(b), b
            for _ in range(terms + 1):
                v, power = v + eta * power, power - eta * matrix @ power
            error = float((v - torch.linalg.solve(matrix, b)).norm())
            bound = neumann_bias(mu=mu, eta=eta, terms=terms, gradient=float(b.norm()), L=L)
            assert error <= bound * (1 + 1e-9)
    assert error == pytest.approx(bound)  # of the eigenvector


def test_outer_steps_of_accbio_stay_below_their_bound() -> None:
    """``sqrt(1 + k)`` times the contraction to the power of the steps, with ``k = L_Phi/mu_x``, from exact hypergradients."""
    made = quadratic(size=5, outer_size=3, kappa=4.0, seed=0)
    known = made.constants
    start = torch.zeros(3, dtype=DOUBLE)
    slopes = torch.stack([made.hypergradient(point) for point in (start, *torch.eye(3, dtype=DOUBLE))])
    solution = -torch.linalg.solve((slopes[1:] - slopes[0]).T, slopes[0])
    assert known.L_phi is not None
    assert known.mu_x is not None
    algorithm = AccBiO(estimator=accelerated_aid(known, 30, 30), L_phi=known.L_phi, mu_x=known.mu_x)
    factor = accelerated_contraction(mu=known.mu_x, L=known.L_phi)
    for steps in (1, 20):
        error = (run(made.problem, algorithm, start, steps=steps).x - solution).norm() / solution.norm()
        assert float(error) <= (1 + known.L_phi / known.mu_x) ** 0.5 * factor**steps


def test_the_error_of_pzobo() -> None:
    """The mean of ``|u u'd - d|^2/|d|^2`` over many ``u``, averaged over ``Q`` of them: within 3 % of ``(p + 1)/Q``."""
    size, directions, draws = 6, 4, 40_000
    generator = torch.Generator().manual_seed(0)
    response = torch.randn(size, generator=generator, dtype=DOUBLE)
    u = torch.randn(draws, directions, size, generator=generator, dtype=DOUBLE)
    estimates = (u * (u @ response)[..., None]).mean(1)
    measured = float((estimates - response).square().sum(-1).mean() / response.square().sum())
    assert measured == pytest.approx(pzobo_error(outer_size=size, directions=directions), rel=0.03)


def test_the_outer_step_size() -> None:
    assert bio_outer_step(L_phi=2.0) == 0.125


def test_wrong_constants_are_one_line() -> None:
    with pytest.raises(ConfigError, match=r"neumann_bias\(eta=2\) is above 1/L = 0.5, but .*; use 0.5"):
        neumann_bias(mu=0.1, eta=2.0, terms=2, gradient=1.0, L=2.0)
    with pytest.raises(ConfigError, match=r"neumann_bias\(eta=2\) is above 1/mu = 1, but .*; use 1"):
        neumann_bias(mu=1.0, eta=2.0, terms=2, gradient=1.0)
    with pytest.raises(ConfigError, match=r"itd_bias\(mu=2, L=1\), but mu must be at most L; swap them"):
        itd_bias(mu=2.0, L=1.0, L_xy=1.0, gradient=1.0, step_size=0.1, steps=1)
    with pytest.raises(ConfigError, match=r"pzobo_error\(directions=0\), but"):
        pzobo_error(outer_size=2, directions=0)
