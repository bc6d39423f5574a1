"""Every estimator against the closed forms of the quadratic, and against finite differences of Phi."""

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
    PZOBO,
    BilevelProblem,
    Draw,
    Estimator,
    Exact,
    Fixed,
    FixedPoint,
    GradientDescent,
    HeavyBall,
    HeavyBallLinear,
    Nesterov,
    Neumann,
    NormalCG,
    OracleCounts,
    Sampled,
    StocBiONeumann,
    hypergradient,
    quadratic,
)
from metalearn.inner import MEMORY_MODES
from tests.bilevel.made import DOUBLE, Logistic, contraction, noise, relative

STEP = 0.8
Q = quadratic(7, 4, 8.0, seed=3)
X, Y = noise(4), noise(7, seed=1)


def descend(y: Tensor, x: Tensor, steps: int) -> Tensor:
    for _ in range(steps):
        y = y - STEP * (Q.A @ y - Q.C @ x - Q.d)
    return y


def sgd(steps: int) -> GradientDescent:
    return GradientDescent(step_size=STEP, steps=steps)


@pytest.mark.parametrize("memory", MEMORY_MODES)
@pytest.mark.parametrize("steps", [1, 2, 9])
def test_itd_has_its_exact_value_at_finite_steps(steps: int, memory: Any) -> None:
    found = hypergradient(Q.problem, X, Y, ITD(inner=sgd(steps), memory=memory))
    end = descend(Y, X, steps)
    of_x, of_y = Q.partial(X, end)
    rest = torch.eye(7, dtype=DOUBLE) - contraction(Q, STEP, steps)
    assert relative(found.inner, end) < 1e-13
    assert relative(found.value, of_x + Q.C.T @ rest @ torch.linalg.solve(Q.A, of_y)) < 1e-12


def test_itd_keeps_its_bias_from_a_converged_start() -> None:
    found = hypergradient(Q.problem, X, Q.solution(X), ITD(inner=sgd(5)))
    of_y = Q.partial(X, Q.solution(X))[1]
    bias = -Q.C.T @ contraction(Q, STEP, 5) @ torch.linalg.solve(Q.A, of_y)
    assert relative(found.value - Q.hypergradient(X), bias) < 1e-11


@pytest.mark.parametrize("memory", MEMORY_MODES)
def test_truncated_itd_differentiates_the_last_steps(memory: Any) -> None:
    found = hypergradient(Q.problem, X, Y, ITD(inner=sgd(9), truncate=4, memory=memory))
    end = descend(Y, X, 9)
    of_x, of_y = Q.partial(X, end)
    rest = torch.eye(7, dtype=DOUBLE) - contraction(Q, STEP, 4)
    assert relative(found.value, of_x + Q.C.T @ rest @ torch.linalg.solve(Q.A, of_y)) < 1e-12


@pytest.mark.parametrize("kind", ["heavy ball", "nesterov"])
@pytest.mark.parametrize("truncate", [None, 3])
def test_itd_through_momentum_equals_a_plain_loop(kind: str, truncate: int | None) -> None:
    steps, momentum = 6, 0.4
    x = X.clone().requires_grad_()
    y = last = Y
    for step in range(steps):
        if truncate is not None and step == steps - truncate:
            y, last = y.detach(), last.detach()
        point = y + momentum * (y - last) if kind == "nesterov" else y
        gradient = Q.A @ point - Q.C @ x - Q.d
        move = momentum * (y - last)
        y, last = y - STEP * gradient + move, y
    (expected,) = torch.autograd.grad(Q.outer_loss(x, y, None), x)
    solver = (HeavyBall if kind == "heavy ball" else Nesterov)(step_size=STEP, momentum=momentum, steps=steps)
    found = hypergradient(Q.problem, X, Y, ITD(inner=solver, truncate=truncate))
    assert relative(found.value, expected) < 1e-12


@pytest.mark.parametrize("steps", [1, 4])
def test_itd_is_the_fixed_point_estimator_of_as_many_iterations(steps: int) -> None:
    """``v_K = a sum_{q<K} (I - a A)^q grad_y f``, written out."""
    end = descend(Y, X, steps)
    of_x, of_y = Q.partial(X, end)
    v = STEP * sum((contraction(Q, STEP, q) for q in range(steps)), torch.zeros(7, 7, dtype=DOUBLE)) @ of_y
    expected = of_x + Q.C.T @ v
    aid = AID(inner=sgd(steps), solver=FixedPoint(step_size=STEP, iterations=steps))
    for estimator in (ITD(inner=sgd(steps)), aid):
        assert relative(hypergradient(Q.problem, X, Y, estimator).value, expected) < 1e-12


@pytest.mark.parametrize("terms", [1, 3])
def test_neumann_and_stocbio_sum_as_many_terms_and_one(terms: int) -> None:
    """``a sum_{q=0}^{K} (I - a A)^q b``: with the scale ``a``, and with the term of ``q = 0``."""
    of_x, of_y = Q.partial(X, Y)
    v = STEP * sum((contraction(Q, STEP, q) for q in range(terms + 1)), torch.zeros(7, 7, dtype=DOUBLE)) @ of_y
    for estimator in (
        AID(solver=Neumann(step_size=STEP, iterations=terms)),
        AID(solver=FixedPoint(step_size=STEP, iterations=terms + 1)),
        StocBiONeumann(eta=STEP, Q=terms),
    ):
        found = hypergradient(Q.problem, X, Y, estimator)
        assert relative(found.dual, v) < 1e-13
        assert relative(found.value, of_x + Q.C.T @ v) < 1e-12


def test_stocbio_uses_its_batches_from_the_last_to_the_first() -> None:
    """Each product has a Hessian of its own: ``eta (b + (I - eta A_0) b + (I - eta A_1)(I - eta A_0) b)``, of shrinking sizes."""
    matrices = [Q.A + 0.05 * torch.diag(noise(7, seed=k).abs()) for k in range(5)]
    asked = []

    class Draws:
        def __call__(self, draw: Any) -> Tensor:
            asked.append((draw.term, draw.number, draw.size))
            return matrices[draw.number if draw.term == "hessian" else 4]

        def samples(self, draw: Any) -> int:
            return draw.size or 1

    def inner(x: Tensor, y: Tensor, A: Tensor) -> Tensor:
        return y @ A @ y / 2 - y @ (Q.C @ x + Q.d)

    problem = dataclasses.replace(Q.problem, inner_loss=inner, stream=Draws())
    counts = OracleCounts()
    estimator = StocBiONeumann(eta=0.5, Q=3, batch=10)
    found = hypergradient(problem, X, Y, estimator, counts=counts)
    of_x, of_y = Q.partial(X, Y)
    eye = torch.eye(7, dtype=DOUBLE)
    one = (eye - 0.5 * matrices[0]) @ of_y
    two = (eye - 0.5 * matrices[1]) @ one
    three = (eye - 0.5 * matrices[2]) @ two
    v = 0.5 * (of_y + one + two + three)
    assert relative(found.dual, v) < 1e-13
    assert relative(found.value, of_x + Q.C.T @ v) < 1e-12
    mu = Q.problem.constants.mu
    assert mu is not None
    rate = 1 - 0.5 * mu
    sizes = [size for term, _, size in asked if term == "hessian"]
    assert sizes == [30, -int(-30 * rate // 1), -int(-30 * rate**2 // 1)]
    assert counts.hvp == sum(sizes)


@pytest.mark.parametrize("terms", [2, 6, 20])
def test_stocbio_bias_is_within_its_bound(terms: int) -> None:
    found = hypergradient(Q.problem, X, Y, StocBiONeumann(eta=1.0, Q=terms))
    of_x, of_y = Q.partial(X, Y)
    error = (found.value - of_x - Q.C.T @ torch.linalg.solve(Q.A, of_y)).norm()
    mu = float(torch.linalg.eigvalsh(Q.A)[0])
    assert error <= torch.linalg.matrix_norm(Q.C, 2) / mu * (1 - mu) ** (terms + 1) * of_y.norm()


def test_pzobo_has_its_exact_relative_error() -> None:
    """Affine ``y_N``: unbiased whatever ``mu``, and a mean squared error of ``(p + 1)/Q`` times the response term's square."""
    p, directions, runs = 6, 4, 600
    q = quadratic(3, p, 2.0, seed=1)
    x, y = noise(p), noise(3, seed=1)
    step = GradientDescent(step_size=1.0, steps=2)
    end = y
    for _ in range(2):
        end = end - (q.A @ end - q.C @ x - q.d)
    of_x, of_y = q.partial(x, end)
    rest = torch.eye(3, dtype=DOUBLE) - contraction(q, 1.0, 2)
    response = q.C.T @ rest @ torch.linalg.solve(q.A, of_y)
    for mu in (1e-3, 10.0):
        errors = []
        total = torch.zeros(p, dtype=DOUBLE)
        for seed in range(runs // 2):
            found = (
                hypergradient(q.problem, x, y, PZOBO(inner=step, mu=mu, Q=directions, at_once=4), seed=seed).value
                - of_x
            )
            errors.append(((found - response).norm() / response.norm()) ** 2)
            total += found
        sample = torch.stack(errors)
        expected = (p + 1) / directions
        assert abs(float(sample.mean()) - expected) < 4 * float(sample.std()) / len(errors) ** 0.5
        assert relative(total / len(errors), response) < 4 * (expected / len(errors)) ** 0.5


def test_pzobo_s_sees_the_same_batches_in_both_runs() -> None:
    """With batches that differ by an offset of ``d``, the difference of two runs does not see them."""

    class Offsets:
        def __call__(self, draw: Any) -> Tensor:
            return torch.randn(7, generator=draw.generator(), dtype=DOUBLE)

        def samples(self, draw: Any) -> int:
            return 1

    def inner(x: Tensor, y: Tensor, batch: Tensor) -> Tensor:
        return Q.inner_loss(x, y, None) + y @ batch

    problem = dataclasses.replace(Q.problem, inner_loss=inner, outer_loss=lambda x, y, _: y.sum(), stream=Offsets())
    estimator = PZOBO(inner=sgd(3), mu=1e-4, Q=2)
    plain = dataclasses.replace(Q.problem, outer_loss=problem.outer_loss)
    assert relative(
        hypergradient(problem, X, Y, estimator).value, hypergradient(plain, X, Y, estimator).value
    ) < 1e-7  # fmt: skip


@pytest.mark.parametrize("solver", [sgd(4), GradientDescent(step_size=STEP, tolerance=1e-3)])
def test_pzobo_runs_directions_together_or_apart(solver: GradientDescent) -> None:
    """The same value from the same calls, also with batches, of which every direction sees the same."""
    data = noise(20, 7, seed=3)

    def inner(x: Tensor, y: Tensor, batch: Tensor) -> Tensor:
        return Q.inner_loss(x, y, None) + y @ batch.mean(0)

    stream = Sampled(data, data, inner_size=5) if solver.tolerance is None else Fixed(data, data)
    problem = dataclasses.replace(Q.problem, inner_loss=inner, stream=stream)
    apart, together = (
        hypergradient(problem, X, Y, PZOBO(inner=solver, mu=0.1, Q=5, at_once=k), seed=2, step=1) for k in (1, 3)
    )
    assert relative(together.value, apart.value) < 1e-11
    if solver.tolerance is None:
        assert together.diagnostics == apart.diagnostics


CONVERGED = GradientDescent(step_size=1.0, tolerance=1e-12)
NONLINEAR: list[Estimator] = [
    Exact(inner=CONVERGED),
    AID(inner=CONVERGED, solver=CG(iterations=4)),
    AID(inner=CONVERGED, solver=CG(tolerance=1e-11)),
    AID(inner=Nesterov(step_size=1.0, momentum=0.5, tolerance=1e-12), solver=NormalCG(iterations=6)),
    AID(
        inner=HeavyBall(step_size=1.0, momentum=0.3, tolerance=1e-12), solver=FixedPoint(step_size=1.0, tolerance=1e-11)
    ),
    AID(inner=CONVERGED, solver=Neumann(step_size=1.0, iterations=150)),
    AID(inner=CONVERGED, solver=HeavyBallLinear(step_size=1.0, momentum=0.3, iterations=150)),
    StocBiONeumann(inner=CONVERGED, eta=1.0, Q=150),
    ITD(inner=GradientDescent(step_size=1.0, steps=150)),
    ITD(inner=GradientDescent(step_size=1.0, steps=150), memory="remat"),
    ITD(inner=GradientDescent(step_size=1.0, steps=150), memory="mixed"),
]


@pytest.mark.parametrize("estimator", NONLINEAR, ids=lambda each: type(each).__name__)
def test_converges_to_finite_differences_of_phi(estimator: Estimator) -> None:
    made = Logistic()
    x = 0.3 * noise(4, seed=8) - 1
    found = hypergradient(made.problem, x, None, estimator)
    assert relative(found.value, made.finite_differences(x)) < 1e-7
    assert relative(found.inner, made.solve(x)) < 1e-9


def test_pzobo_finds_the_direction_of_phi() -> None:
    made = Logistic()
    x = 0.3 * noise(4, seed=8) - 1
    estimator = PZOBO(inner=GradientDescent(step_size=1.0, steps=60), mu=1e-4, Q=100, at_once=100)
    found = hypergradient(made.problem, x, None, estimator)
    assert relative(found.value, made.finite_differences(x)) < 4 * (5 / 100) ** 0.5


def test_trees_and_warm_starts() -> None:
    """A nested tree gives the parts of the flat problem's value, and a warm start at the solution needs no iteration."""

    def join(tree: dict[str, Any]) -> Tensor:
        return torch.cat([tree["a"].flatten(), tree["b"][0]])

    problem = dataclasses.replace(
        Q.problem,
        inner_loss=lambda x, y, _: Q.inner_loss(join(x), join(y), None),
        outer_loss=lambda x, y, _: Q.outer_loss(join(x), join(y), None),
        init_inner=lambda x: {"a": torch.zeros(2, 2, dtype=DOUBLE), "b": [torch.zeros(3, dtype=DOUBLE)]},
    )
    x = {"a": X[:3].reshape(1, 3), "b": [X[3:]]}
    solved = AID(inner=GradientDescent(step_size=1.0, tolerance=1e-12), solver=CG(tolerance=1e-12))
    found = hypergradient(problem, x, None, solved)
    assert found.value["a"].shape == (1, 3)
    assert found.inner["a"].shape == (2, 2)
    assert relative(join(found.value), Q.hypergradient(X)) < 1e-10
    again = hypergradient(problem, x, found.inner, solved, dual=found.dual)
    assert again.diagnostics.inner_steps == 1
    assert again.diagnostics.iterations <= 1


def test_counts_are_those_of_the_thesis() -> None:
    def counted(estimator: Estimator, dual: Tensor | None = None) -> tuple[int, int, int, int]:
        counts = hypergradient(Q.problem, X, Y, estimator, dual=dual).diagnostics.counts
        return counts.gc_f, counts.gc_g, counts.jvp, counts.hvp

    assert counted(ITD(inner=sgd(5))) == (1, 5, 5, 4)
    assert counted(ITD(inner=sgd(5), truncate=2)) == (1, 5, 2, 1)
    # the gradient at the last point, whose norm is the inner residual, is the sixth
    assert counted(AID(inner=sgd(5), solver=CG(iterations=3))) == (1, 6, 1, 3)
    assert counted(AID(inner=sgd(5), solver=CG(iterations=3)), dual=Y) == (1, 6, 1, 4)
    assert counted(AID(inner=sgd(5), solver=NormalCG(iterations=3))) == (1, 6, 1, 6)
    assert counted(StocBiONeumann(inner=sgd(5), eta=0.5, Q=3)) == (1, 5, 1, 3)
    assert counted(PZOBO(inner=sgd(5), Q=3)) == (1, 20, 0, 0)
    assert counted(Exact(inner=sgd(5))) == (1, 6, 1, 7)


def test_counts_see_every_call_of_the_losses() -> None:
    """The inner loss is evaluated once for each gradient, and once where the graph for the products is built."""
    calls = {"f": 0, "g": 0}

    def inner(x: Tensor, y: Tensor, _: Any) -> Tensor:
        calls["g"] += 1
        return Q.inner_loss(x, y, None)

    def outer(x: Tensor, y: Tensor, _: Any) -> Tensor:
        calls["f"] += 1
        return Q.outer_loss(x, y, None)

    problem = dataclasses.replace(Q.problem, inner_loss=inner, outer_loss=outer)
    for estimator in (ITD(inner=sgd(4)), AID(inner=sgd(4)), PZOBO(inner=sgd(4), Q=2)):
        calls.update(f=0, g=0)
        counts = hypergradient(problem, X, Y, estimator).diagnostics.counts
        assert calls == {"f": counts.gc_f, "g": counts.gc_g}


def test_a_fixed_batch_shares_the_graph_of_the_products() -> None:
    problem = dataclasses.replace(Q.problem, stream=Fixed(None, torch.zeros(1)))
    found = hypergradient(problem, X, Y, AID(solver=CG(iterations=7)))
    expected = hypergradient(Q.problem, X, Y, Exact())
    assert relative(found.value, expected.value) < 1e-10
    assert found.diagnostics.counts.gc_g == 1


def test_aid_takes_the_mixed_product_on_a_batch_of_its_own() -> None:
    """``J = -c_B I`` and ``H = h_B I`` of two draws, ``grad_y f = 1``: ``G = c/h``."""
    values = torch.linspace(1.0, 9.0, 9, dtype=DOUBLE)
    stream = Sampled(values, values, outer_size=2, inner_size=2)
    problem = BilevelProblem(
        lambda x, y, _: y.sum(),
        lambda x, y, batch: batch.mean() * ((y * y).sum() / 2 - x @ y),
        torch.zeros_like,
        stream=stream,
    )
    for step in range(3):
        found = hypergradient(problem, noise(3), None, AID(solver=CG(iterations=1)), step=step, seed=4)
        of_h, of_j = (float(stream(Draw(4, step, term)).mean()) for term in ("hessian", "jacobian"))
        assert of_h != of_j
        torch.testing.assert_close(found.value, torch.full((3,), of_j / of_h, dtype=DOUBLE))
