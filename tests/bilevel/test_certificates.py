"""The certified error against the true one."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from metalearn.bilevel import (
    AID,
    CG,
    ITD,
    L1,
    MRBO,
    PZOBO,
    VRBO,
    AccBiO,
    AccBiOBG,
    BilevelProblem,
    BiO,
    Constants,
    Estimator,
    FixedPoint,
    GradientDescent,
    OracleCounts,
    Oracles,
    ProximalBiO,
    Quadratic,
    Sampled,
    StocBiONeumann,
    certify,
    error_bound,
    hypergradient,
    quadratic,
    run,
)
from metalearn.bilevel.certificates import sharpen
from metalearn.errors import BilevelError, ConfigError
from tests.bilevel.made import DOUBLE, noise, relative


def sgd(steps: int) -> GradientDescent:
    return GradientDescent(step_size=1.0, steps=steps)


ESTIMATORS: list[Estimator] = [
    AID(inner=sgd(1), solver=CG(iterations=1)),
    AID(inner=sgd(10), solver=CG(iterations=2)),
    AID(inner=sgd(100), solver=CG(iterations=3)),
    AID(inner=sgd(3), solver=CG(iterations=8)),
    AID(inner=sgd(20), solver=FixedPoint(step_size=1.0, iterations=20)),
    ITD(inner=sgd(10)),
    PZOBO(inner=sgd(10), Q=2),
]


def true_error(q: Quadratic, x: Tensor, value: Tensor) -> float:
    return float((value - q.hypergradient(x)).norm())


@pytest.mark.parametrize("kappa", [2.0, 30.0, 1000.0])
@pytest.mark.parametrize("seed", range(4))
def test_holds_on_quadratics_within_a_factor_of_ten(kappa: float, seed: int) -> None:
    q = quadratic(8, 5, kappa, seed=seed)
    x, y = noise(5, seed=seed), noise(8, seed=seed + 1)
    for estimator in ESTIMATORS:
        found = hypergradient(q.problem, x, y, estimator)
        error = true_error(q, x, found.value)
        sharp = certify(q.problem, x, found)
        assert float(sharp.lower) <= error <= float(sharp.upper) <= 10 * error
        direct = hypergradient(q.problem, x, y, estimator, sharp=True).diagnostics.certificate
        assert direct is not None
        assert float(direct) == float(sharp.upper)
        plain = found.diagnostics.certificate
        assert (plain is None) == isinstance(estimator, (ITD, PZOBO))
        if plain is not None:
            assert error <= float(plain)


def test_the_plain_bound_is_attained_by_an_isotropic_problem() -> None:
    """One curvature, one coupling, no residual but the linear one: ``|J| r_2 / mu`` is the error."""
    eye = torch.eye(3, dtype=DOUBLE)
    zero = torch.zeros(3, dtype=DOUBLE)
    q = Quadratic(0.5 * eye, 2 * eye, zero, eye, zero, eye, zero, 0 * eye)
    x = noise(3)
    found = hypergradient(q.problem, x, q.solution(x), AID(solver=FixedPoint(step_size=1.0, iterations=2)))
    plain = found.diagnostics.certificate
    assert plain is not None
    assert abs(float(plain) / true_error(q, x, found.value) - 1) < 1e-12


class Curved:
    """``g = |y|^2/2 + c sum cos(y_i + x_i)``, ``f = sum sin(y_i) + |x|^2/2 + x'y/4``: every constant is known, and none is 0."""

    c = 0.2
    constants = Constants(
        mu=0.8, L=1.2, L_xy=0.2, rho_J=0.2, rho_H=0.2, L_fxx=1.0, L_fxy=0.25, L_fyy=1.0
    )  # fmt: skip

    @classmethod
    def inner_loss(cls, x: Tensor, y: Tensor, _: Any) -> Tensor:
        return y @ y / 2 + cls.c * (y + x).cos().sum()

    @staticmethod
    def outer_loss(x: Tensor, y: Tensor, _: Any) -> Tensor:
        return y.sin().sum() + x @ x / 2 + x @ y / 4

    @classmethod
    def gradient(cls, x: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        for _ in range(200):
            y = cls.c * (y + x).sin()
        bend = cls.c * (y + x).cos()
        return x + y / 4 + bend / (1 - bend) * (y.cos() + x / 4)

    problem: BilevelProblem


Curved.problem = BilevelProblem(Curved.outer_loss, Curved.inner_loss, torch.zeros_like, Curved.constants)


@pytest.mark.parametrize("steps", [0, 1, 3, 8])
@pytest.mark.parametrize("iterations", [0, 1, 4])
def test_holds_where_curvature_changes(steps: int, iterations: int) -> None:
    x = 2 * noise(6)
    found = hypergradient(Curved.problem, x, noise(6, seed=1), AID(inner=sgd(steps), solver=CG(iterations=iterations)))
    error = float((found.value - Curved.gradient(x)).norm())
    plain, sharp = found.diagnostics.certificate, certify(Curved.problem, x, found)
    assert plain is not None
    assert error <= float(plain)
    assert float(sharp.lower) <= error <= float(sharp.upper) <= 3.001 * float(sharp.lower)


@pytest.mark.parametrize("seed", range(3))
def test_certify_stops_as_soon_as_its_bounds_are_within_a_factor_of_three(seed: int) -> None:
    """On a problem that takes it many rounds, since 8 iterations each are few for 30 eigenvalues."""
    q = quadratic(30, 5, 300.0, seed=seed)
    x = noise(5, seed=seed)
    found = hypergradient(q.problem, x, None, AID(inner=sgd(20), solver=CG(iterations=3)))
    counts = OracleCounts()
    sharp = certify(q.problem, x, found, counts=counts)
    rounds = counts.gc_f
    assert rounds > 4
    assert float(sharp.upper) <= 3 * float(sharp.lower)
    of_x, of_y, _ = q.problem.layouts(x)
    ratios = []
    for earlier in range(1, rounds):
        before = sharpen(Oracles(q.problem, of_x, of_y), x, found.inner, found.dual, found.value, rounds=earlier)
        # of each round by itself: |G - G'| + b and |G - G'| - b are bounds, so that b and |G - G'| follow
        bound, distance = float(before.upper - before.lower) / 2, float(before.upper + before.lower) / 2
        ratios.append(bound / distance)
    assert min(ratios) > 0.5 * (1 - 1e-9)


def test_the_bound_is_its_formula_with_room_for_rounding() -> None:
    """Every term, in float32, where eight units in the last place are not nothing."""
    mu, L, l_xy, l_fxy, l_fyy, rho_j, rho_h = 0.5, 2.0, 3.0, 0.7, 1.1, 0.3, 0.2
    constants = Constants(mu=mu, L=L, L_xy=l_xy, L_fxy=l_fxy, L_fyy=l_fyy, rho_J=rho_j, rho_H=rho_h)
    y, v = torch.tensor([3.0, 4.0]), torch.tensor([0.0, 2.0])
    eps = 8 * torch.finfo(torch.float32).eps
    for inner, dual in ((0.0, 0.0), (0.1, 0.0), (0.0, 0.2), (0.1, 0.2)):
        e = (inner + eps * L * 5) / mu
        expected = e * (l_fxy + rho_j * 2) + l_xy / mu * (dual + eps * L * 2 + e * (l_fyy + rho_h * 2)) + eps * l_xy * 2
        found = error_bound(constants, y, v, torch.tensor(inner), torch.tensor(dual))
        assert float(found) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("tolerance", [1e-2, 1e-6, 1e-9])
def test_a_tolerance_is_kept(tolerance: float) -> None:
    estimator = AID(inner=sgd(1), solver=CG(iterations=1), tolerance=tolerance)
    q = quadratic(8, 5, 20.0, seed=5)
    x = noise(5)
    cases = [(q.problem, q.hypergradient(x), x), (Curved.problem, Curved.gradient(x), x)]
    for problem, expected, x in cases:
        found = hypergradient(problem, x, None, estimator)
        assert found.diagnostics.certificate is not None
        assert float((found.value - expected).norm()) <= float(found.diagnostics.certificate) <= tolerance
    loose = hypergradient(q.problem, x, None, AID(inner=sgd(1), tolerance=1e-1)).diagnostics.counts
    tight = hypergradient(q.problem, x, None, estimator).diagnostics.counts
    assert tolerance > 1e-3 or (loose.gc_g < tight.gc_g and loose.hvp <= tight.hvp)


def test_batched_certificates() -> None:
    """Of problems with x of their own one bound each; where they share it, one for the mean."""
    x = noise(3, 6)
    own = dataclasses.replace(Curved.problem, batched=3, shared_x=False)
    estimator = AID(inner=sgd(2), solver=CG(iterations=1))
    found = hypergradient(own, x, None, estimator)
    plain, sharp = found.diagnostics.certificate, certify(own, x, found)
    assert plain is not None
    for k in range(3):
        error = float((found.value[k] - Curved.gradient(x[k])).norm())
        assert error <= plain[k]
        assert sharp.lower[k] <= error <= sharp.upper[k]
    shared = dataclasses.replace(Curved.problem, batched=3, init_inner=lambda x: noise(3, 6))
    found = hypergradient(shared, x[0], None, estimator)
    plain, sharp = found.diagnostics.certificate, certify(shared, x[0], found)
    error = float((found.value - Curved.gradient(x[0])).norm())
    assert plain is not None
    assert error <= float(plain)
    assert float(sharp.lower) <= error <= float(sharp.upper)


def test_what_a_certificate_needs_is_said() -> None:
    q = quadratic(4, 3, 5.0, seed=0)
    x = noise(3)
    found = hypergradient(q.problem, x)
    unknown = dataclasses.replace(q.problem, constants=Constants(mu=0.1))
    assert hypergradient(unknown, x).diagnostics.certificate is None
    with pytest.raises(
        ConfigError, match=r"a certificate needs constants.L_xy, .*give BilevelProblem\(constants=Constants\(L_xy"
    ):
        certify(unknown, x, found)
    with pytest.raises(ConfigError, match=r"AID\(tolerance=...\) needs constants.L_xy"):
        hypergradient(unknown, x, None, AID(inner=sgd(1), tolerance=1e-3))
    drawn = dataclasses.replace(q.problem, stream=Sampled(noise(4), noise(4), inner_size=2))
    with pytest.raises(
        ConfigError, match="draws batches from Sampled, but a certificate is for a deterministic one; use with_batch"
    ):
        certify(drawn, x, found)
    with pytest.raises(BilevelError, match="tolerance=1e-18 was asked for|tolerance=.* was asked for"):
        hypergradient(
            q.problem, x, None, AID(inner=GradientDescent(step_size=1.0, steps=1, max_steps=400), tolerance=1e-18)
        )


def test_a_converged_value_is_exact() -> None:
    q = quadratic(6, 3, 9.0, seed=1)
    x = noise(3)
    found = hypergradient(q.problem, x, None, AID(inner=sgd(1), tolerance=1e-10))
    assert relative(found.value, q.hypergradient(x)) < 1e-10


@pytest.mark.parametrize(
    "estimator", [ITD(inner=sgd(4)), AID(inner=sgd(2), solver=CG(iterations=2)), PZOBO(inner=sgd(4), Q=3)]
)
def test_a_run_is_certified_at_every_step_and_its_calls_are_its_own(estimator: Estimator) -> None:
    q = quadratic(8, 5, 30.0, seed=2)
    size = 2e-4
    points = [noise(5)]
    result = run(
        q.problem, BiO(estimator=estimator, step_size=size, certify=True), points[0], steps=6,
        callback=lambda state, _: points.append(state["x"]),
    )  # fmt: skip
    for before, after, record in zip(points[:-1], points[1:], result.history, strict=True):
        error = true_error(q, before, (before - after) / size)
        assert record.certificate is not None
        assert error <= record.certificate * (1 + 1e-9)
        assert record.certificate <= 10 * error
    plain = run(q.problem, BiO(estimator=estimator, step_size=size), points[0], steps=6)
    assert torch.equal(plain.x, result.x)
    assert plain.state["counts"] == result.state["counts"]


def test_every_algorithm_can_be_certified() -> None:
    q = quadratic(6, 4, 5.0, seed=1)
    point = StocBiONeumann(eta=0.5, Q=3)
    aid = AID(inner=sgd(2), solver=CG(iterations=2))
    for algorithm in (
        AccBiO(estimator=aid, L_phi=100.0, mu_x=1.0, certify=True),
        AccBiOBG(estimator=aid, step_size=0.005, mu_x=1.0, certify=True),
        MRBO(estimator=point, step_size=0.01, inner_step_size=0.5, certify=True),
        VRBO(estimator=point, anchor=point, step_size=0.01, inner_step_size=0.5, certify=True),
        ProximalBiO(estimator=aid, prox=L1(0.1), step_size=0.01, certify=True),
    ):
        found = run(q.problem, algorithm, noise(4), steps=2).history[-1].certificate
        plain = run(q.problem, dataclasses.replace(algorithm, certify=False), noise(4), steps=2).history[-1].certificate
        assert found is not None
        assert plain is None or found < 0.9 * plain  # without residuals there is no plain one
    batch = torch.zeros(3)
    drawn = dataclasses.replace(q.problem, stream=Sampled(batch, batch, 2, 2))
    with pytest.raises(ConfigError, match="draws batches from Sampled"):
        run(drawn, BiO(estimator=aid, step_size=0.01, certify=True), noise(4), steps=1)
