"""Every outer algorithm against its recursion written out, and its solution."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from metalearn.bilevel import (
    AID,
    ITD,
    L1,
    MRBO,
    VRBO,
    AccBiO,
    AccBiOBG,
    Algorithm,
    BilevelProblem,
    BiO,
    Constants,
    Draw,
    Exact,
    GradientDescent,
    ProximalBiO,
    Sampled,
    StocBiONeumann,
    acc_bio,
    acc_bio_bg,
    aid_bio,
    itd_bio,
    quadratic,
    run,
    smoothness_of_phi,
    stoc_bio,
)
from tests.bilevel.made import DOUBLE, noise, relative

_WIDE = quadratic(6, 4, 2.5, seed=4, coupled=False)
Q = dataclasses.replace(_WIDE, C=0.5 * _WIDE.C, Y=0.7 * _WIDE.Y)  # a condition number of Phi that few steps can do
START = noise(4)
CONSTANTS = Q.problem.constants


def optimum() -> Tensor:
    """Of ``Phi``, from its affine gradient."""
    zero = Q.hypergradient(torch.zeros(4, dtype=DOUBLE))
    curvature = torch.stack([Q.hypergradient(unit) - zero for unit in torch.eye(4, dtype=DOUBLE)], 1)
    return torch.linalg.solve(curvature, -zero)


STEPS = 130
SOLVING: dict[str, Algorithm] = {
    "aid": aid_bio(CONSTANTS, step_size=1 / smoothness_of_phi(CONSTANTS)),
    "itd": itd_bio(CONSTANTS, accuracy=1e-8, step_size=1 / smoothness_of_phi(CONSTANTS)),
    "stocbio": stoc_bio(CONSTANTS, batch=4, accuracy=1e-8, step_size=1 / smoothness_of_phi(CONSTANTS)),
    "acc": acc_bio(CONSTANTS, accuracy=1e-8),
    "acc bg": acc_bio_bg(CONSTANTS),
    "momentum": ProximalBiO(
        estimator=Exact(inner=GradientDescent(step_size=1.0, steps=30)), prox=L1(0.0),
        step_size=1 / smoothness_of_phi(CONSTANTS), momentum=0.5,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(SOLVING))
def test_finds_the_optimum(name: str) -> None:
    found = run(Q.problem, SOLVING[name], START, STEPS, every=10)
    assert relative(found.x, optimum()) < 3e-5
    counts = [record.gc_g + record.hvp for record in found.history]
    assert counts == sorted(counts)
    assert found.history[-1].norm < found.history[0].norm


def test_rules_of_the_thesis() -> None:
    mu, L = CONSTANTS.mu, CONSTANTS.L
    assert mu is not None
    assert L is not None
    general = Constants(mu=mu, L=L, M=3.0, rho_J=0.5, rho_H=0.25)
    expected = L + (2 * L**2 + 0.5 * 3) / mu + (0.25 * L * 3 + L**3 + 0.5 * 3 * L) / mu**2 + 0.25 * L**2 * 3 / mu**3
    assert smoothness_of_phi(general) == pytest.approx(expected)
    bound = smoothness_of_phi(dataclasses.replace(CONSTANTS, L_phi=None))
    assert CONSTANTS.L_phi is not None
    assert CONSTANTS.L_phi <= bound < 50 * CONSTANTS.L_phi
    aid = aid_bio(general)
    assert aid.step_size == pytest.approx(1 / (4 * expected))
    assert isinstance(aid.estimator, AID)
    assert aid.estimator.inner is not None
    assert aid.estimator.inner.step_size == pytest.approx(1 / L)
    stoc = stoc_bio(general, batch=2)
    assert stoc.estimator.inner is not None
    assert stoc.estimator.inner.step_size == pytest.approx(2 / (L + mu))


def test_bio_is_a_plain_loop() -> None:
    """ITD-BiO with warm starts, by torch.autograd alone."""
    x, y = START, torch.zeros(6, dtype=DOUBLE)
    for _ in range(4):
        leaf = x.clone().requires_grad_()
        for _ in range(3):
            y = y - 0.5 * (Q.A @ y - Q.C @ leaf - Q.d)
        (gradient,) = torch.autograd.grad(Q.outer_loss(leaf, y, None), leaf)
        x, y = x - 0.01 * gradient, y.detach()
    algorithm = BiO(estimator=ITD(inner=GradientDescent(step_size=0.5, steps=3)), step_size=0.01)
    found = run(Q.problem, algorithm, START, 4)
    assert relative(found.x, x) < 1e-12
    assert relative(found.state["y"], y) < 1e-12


EXACT = Exact(inner=GradientDescent(step_size=1.0, tolerance=1e-12))


def test_accelerated_recursions() -> None:
    L_phi, mu_x = CONSTANTS.L_phi, CONSTANTS.mu_x
    assert L_phi is not None
    assert mu_x is not None
    x, z = START, START
    kappa = math.sqrt(L_phi / mu_x)
    m = (kappa - 1) / (kappa + 1)
    for _ in range(5):
        last, z = z, x - Q.hypergradient(x) / L_phi
        x = (1 + m) * z - m * last
    assert relative(run(Q.problem, AccBiO(estimator=EXACT, L_phi=L_phi, mu_x=mu_x), START, 5).x, z) < 1e-9
    x, z, a = START, START, 1 / (2 * L_phi)
    root = math.sqrt(a * mu_x)
    for _ in range(5):
        w = root / (root + 2) * x + 2 / (root + 2) * z
        gradient = Q.hypergradient(w)
        x = root / 2 * w + (1 - root / 2) * x - math.sqrt(a / mu_x) * gradient
        z = w - a * gradient
    assert relative(run(Q.problem, AccBiOBG(estimator=EXACT, step_size=a, mu_x=mu_x), START, 5).x, z) < 1e-9


def direction(x: Tensor, y: Tensor) -> Tensor:
    """The implicit gradient at any ``y``."""
    of_x, of_y = Q.partial(x, y)
    return of_x + Q.C.T @ torch.linalg.solve(Q.A, of_y)


@pytest.mark.parametrize(("c1", "c2"), [(1.0, 1.0), (0.1, 0.7), (0.003, 0.01)])
def test_mrbo_is_exact_on_full_batches_for_any_momentum(c1: float, c2: float) -> None:
    algorithm = MRBO(estimator=Exact(), step_size=0.02, inner_step_size=0.5, d=0.9, m=2.0, c1=c1, c2=c2)
    x, y = START, torch.zeros(6, dtype=DOUBLE)
    state = algorithm.init(Q.problem, START)
    for k in range(6):
        u, v = Q.A @ y - Q.C @ x - Q.d, direction(x, y)
        state = algorithm.step(Q.problem, state)
        assert relative(state["u"], u) < 1e-12
        assert relative(state["v"], v) < 1e-12
        rate = 0.9 / (2 + k) ** (1 / 3)
        x, y = x - 0.02 * rate * v, y - 0.5 * rate * u
        assert relative(state["x"], x) < 1e-12
        assert relative(state["y"], y) < 1e-12


@pytest.mark.parametrize("period", [1, 3, 100])
def test_vrbo_telescopes_on_full_batches(period: int) -> None:
    """After a step ``u`` and ``v`` are the exact directions at the point that it ended in."""
    algorithm = VRBO(
        estimator=Exact(), anchor=Exact(), step_size=0.02, inner_step_size=0.5, period=period, inner_steps=2
    )
    x, y = START, torch.zeros(6, dtype=DOUBLE)
    state = algorithm.init(Q.problem, START)
    for _ in range(5):
        x = x - 0.02 * direction(x, y)
        for _ in range(2):
            y = y - 0.5 * (Q.A @ y - Q.C @ x - Q.d)
        state = algorithm.step(Q.problem, state)
        assert relative(state["x"], x) < 1e-11
        assert relative(state["y"], y) < 1e-11
        assert relative(state["u"], Q.A @ y - Q.C @ x - Q.d) < 1e-11
        assert relative(state["v"], direction(x, y)) < 1e-11


def noisy() -> BilevelProblem:
    """A finite sum: the linear terms of the quadratic differ between 40 examples and have its own as their mean."""
    inner, outer = noise(40, 6, seed=11), noise(40, 6, seed=12)
    inner, outer = inner - inner.mean(0), outer - outer.mean(0)
    return dataclasses.replace(
        Q.problem,
        inner_loss=lambda x, y, batch: Q.inner_loss(x, y, None) + y @ batch.mean(0),
        outer_loss=lambda x, y, batch: Q.outer_loss(x, y, None) + y @ batch.mean(0),
        stream=Sampled(outer, inner, outer_size=10, inner_size=10),
    )


def test_mrbo_is_its_recursion_on_small_batches() -> None:
    """The same samples at both points, step after step, and a schedule that goes on."""
    problem = noisy()
    stream: Any = problem.stream
    estimator = StocBiONeumann(eta=0.5, Q=2)
    algorithm = MRBO(estimator=estimator, step_size=0.02, inner_step_size=0.5, c1=0.3, c2=0.6)

    def u_of(x: Tensor, y: Tensor, k: int) -> Tensor:
        return Q.A @ y - Q.C @ x - Q.d + stream(Draw(5, k, "inner")).mean(0)

    def v_of(x: Tensor, y: Tensor, k: int) -> Tensor:
        of_x, of_y = Q.partial(x, y)
        b = of_y + stream(Draw(5, k, "outer")).mean(0)
        eye = torch.eye(6, dtype=DOUBLE) - 0.5 * Q.A
        return of_x + Q.C.T @ (0.5 * (b + eye @ b + eye @ eye @ b))

    x, y = START, torch.zeros(6, dtype=DOUBLE)
    u, v = u_of(x, y, 0), v_of(x, y, 0)
    last = x, y
    for k in range(5):
        if k:
            e = 1 / k ** (1 / 3)
            u = u_of(x, y, k) + (1 - min(1.0, 0.6 * e**2)) * (u - u_of(*last, k))
            v = v_of(x, y, k) + (1 - min(1.0, 0.3 * e**2)) * (v - v_of(*last, k))
        last, e = (x, y), 1 / (1 + k) ** (1 / 3)
        x, y = x - 0.02 * e * v, y - 0.5 * e * u
    found = run(problem, algorithm, START, 5, seed=5)
    assert relative(found.x, x) < 1e-11
    assert relative(found.state["y"], y) < 1e-11


@pytest.mark.parametrize("period", [1, 2, 3])
def test_vrbo_is_its_recursion_on_small_batches(period: int) -> None:
    """Anchors on large batches every ``period`` steps, differences of small ones between, each pair on the same samples."""
    problem = noisy()
    stream: Any = problem.stream
    small, large = StocBiONeumann(eta=0.5, Q=2, outer_size=5), StocBiONeumann(eta=0.5, Q=2, outer_size=40)
    algorithm = VRBO(
        estimator=small, anchor=large, step_size=0.02, inner_step_size=0.5, period=period, inner_steps=2, inner_size=5,
        anchor_size=30,
    )  # fmt: skip

    def u_of(x: Tensor, y: Tensor, draw: int, size: int) -> Tensor:
        return Q.A @ y - Q.C @ x - Q.d + stream(Draw(5, draw, "inner", 0, size)).mean(0)

    def v_of(x: Tensor, y: Tensor, draw: int, size: int) -> Tensor:
        of_x, of_y = Q.partial(x, y)
        b = of_y + stream(Draw(5, draw, "outer", 0, size)).mean(0)
        eye = torch.eye(6, dtype=DOUBLE) - 0.5 * Q.A
        return of_x + Q.C.T @ (0.5 * (b + eye @ b + eye @ eye @ b))

    x, y = START, torch.zeros(6, dtype=DOUBLE)
    u, v = y, x
    for k in range(6):
        draw = 4 * k  # of two inner steps, one more, and the anchor
        if k % period == 0:
            u, v = u_of(x, y, draw, 30), v_of(x, y, draw, 40)
        last, x = (x, y), x - 0.02 * v
        for index in range(3):
            draw += 1
            u = u + u_of(x, y, draw, 5) - u_of(*last, draw, 5)
            v = v + v_of(x, y, draw, 5) - v_of(*last, draw, 5)
            last = x, y
            y = y - 0.5 * u if index < 2 else y
    found = run(problem, algorithm, START, 6, seed=5)
    assert relative(found.x, x) < 1e-11
    assert relative(found.state["y"], y) < 1e-11
    assert relative(found.state["u"], u) < 1e-10
    assert relative(found.state["v"], v) < 1e-10


@pytest.mark.parametrize("momentum", [0.4, None])
def test_proximal_is_its_recursion(momentum: float | None) -> None:
    """With momentum ``k/(k + 3)`` at step ``k`` where none is given; ``norm`` is that of ``(z - x)/b``."""
    size, weight = 0.02, 1.5
    x = before = START
    for k in range(5):
        m = k / (k + 3) if momentum is None else momentum
        z = x + m * (x - before)
        moved = z - size * Q.hypergradient(z)
        before, x = x, moved.sign() * (moved.abs() - size * weight).clamp(min=0)
    algorithm = ProximalBiO(estimator=EXACT, prox=L1(weight), step_size=size, momentum=momentum)
    found = run(Q.problem, algorithm, START, 5)
    assert relative(found.x, x) < 1e-9
    assert found.history[-1].norm == pytest.approx(float((z - x).norm()) / size)


def unrolled(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient through three inner steps from ``y``, and where they end."""
    leaf = x.clone().requires_grad_()
    for _ in range(3):
        y = y - 0.5 * (Q.A @ y - Q.C @ leaf - Q.d)
    (gradient,) = torch.autograd.grad(Q.outer_loss(leaf, y, None), leaf)
    return gradient, y.detach()


def test_inner_runs_start_where_they_should() -> None:
    """Anew without a warm start, and in AccBiO, where in AccBiO-BG they start where the last one's ended."""
    estimator, zero = ITD(inner=GradientDescent(step_size=0.5, steps=3)), torch.zeros(6, dtype=DOUBLE)
    x = START
    for _ in range(3):
        x = x - 0.01 * unrolled(x, zero)[0]
    found = run(Q.problem, BiO(estimator=estimator, step_size=0.01, warm_start=False), START, 3)
    assert relative(found.x, x) < 1e-12
    x = z = START
    m = (10**0.5 - 1) / (10**0.5 + 1)
    for _ in range(3):
        last, z = z, x - unrolled(x, zero)[0] / 200
        x = (1 + m) * z - m * last
    assert relative(run(Q.problem, AccBiO(estimator=estimator, L_phi=200.0, mu_x=20.0), START, 3).x, z) < 1e-12
    x, z, y, a, root = START, START, zero, 0.002, (0.002 * 20) ** 0.5
    for _ in range(3):
        w = root / (root + 2) * x + 2 / (root + 2) * z
        gradient, y = unrolled(w, y)
        x, z = root / 2 * w + (1 - root / 2) * x - (a / 20) ** 0.5 * gradient, w - a * gradient
    assert relative(run(Q.problem, AccBiOBG(estimator=estimator, step_size=a, mu_x=20.0), START, 3).x, z) < 1e-12


def test_numbers_of_inner_steps_are_the_least_that_keep_the_rate() -> None:
    """Nesterov's ``|y_n - y*|^2 <= 2 k (1 - k^-1/2)^n |y_0 - y*|^2`` at the accuracy asked for, and not one step more."""
    mu, L = CONSTANTS.mu, CONSTANTS.L
    assert mu is not None
    assert L is not None
    inner: Any = acc_bio(CONSTANTS, accuracy=1e-4).estimator.inner
    kappa = L / mu
    bound = [(2 * kappa * (1 - kappa**-0.5) ** n) ** 0.5 for n in (inner.steps - 1, inner.steps)]
    assert bound[0] > 1e-4 >= bound[1] * (1 - 1e-9)


@pytest.mark.parametrize("make", [
    lambda estimator: BiO(estimator=estimator, step_size=0.01),
    lambda estimator: AccBiO(estimator=estimator, L_phi=200.0, mu_x=1.0),
    lambda estimator: AccBiOBG(estimator=estimator, step_size=0.004, mu_x=1.0),
    lambda estimator: ProximalBiO(estimator=estimator, prox=L1(0.1), step_size=0.01),
])  # fmt: skip
def test_each_outer_step_draws_its_own_batches(make: Any) -> None:
    steps: list[int] = []

    class Watched(Sampled):
        def __call__(self, draw: Draw) -> Any:
            steps.append(draw.step)
            return super().__call__(draw)

    problem = noisy()
    stream: Any = problem.stream
    watched = dataclasses.replace(problem, stream=Watched(stream.outer, stream.inner, 10, 10))
    run(watched, make(StocBiONeumann(eta=0.5, Q=1)), START, 3)
    assert sorted(set(steps)) == [0, 1, 2]


@pytest.mark.parametrize("momentum", [0.0, 0.4, None])
def test_proximal_finds_the_sparse_optimum(momentum: float | None) -> None:
    """The optimality of ``Phi + w |x|_1``: the gradient is ``-w sign(x)`` where x is not 0, and within ``w`` where it is."""
    weight, L_phi = 1.5, CONSTANTS.L_phi
    assert L_phi is not None
    algorithm = ProximalBiO(estimator=EXACT, prox=L1(weight), step_size=1 / L_phi, momentum=momentum)
    found = run(Q.problem, algorithm, START, 2000, tolerance=1e-9, every=100)
    assert found.converged
    gradient, x = Q.hypergradient(found.x), found.x
    assert 0 < int((x == 0).sum()) < 4
    torch.testing.assert_close(gradient[x != 0], -weight * x[x != 0].sign(), rtol=1e-6, atol=1e-6)
    assert bool((gradient[x == 0].abs() <= weight).all())
