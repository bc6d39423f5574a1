"""B problems at once are B problems one after another."""

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
    BiO,
    Chunked,
    Draw,
    Estimator,
    Exact,
    FixedPoint,
    GradientDescent,
    HeavyBallLinear,
    Nesterov,
    Neumann,
    NormalCG,
    ProximalBiO,
    Sampled,
    StocBiONeumann,
    hypergradient,
    run,
)
from metalearn.bilevel.solvers.prox import GroupL1
from metalearn.errors import ConfigError
from tests.bilevel.made import DOUBLE, Logistic, noise

B = 3
TASKS = [Logistic(seed=10 * k) for k in range(B)]
OUTER, INNER = (
    tuple(torch.stack([getattr(task, name)[k] for task in TASKS]) for k in (0, 1)) for name in ("val", "train")
)
STEPS = GradientDescent(step_size=0.7, steps=6)
ESTIMATORS: list[Estimator] = [
    Exact(inner=STEPS),
    AID(inner=STEPS, solver=CG(iterations=2)),
    AID(inner=GradientDescent(step_size=0.7, tolerance=1e-5), solver=CG(tolerance=1e-4)),
    AID(inner=Nesterov(step_size=0.7, momentum=0.5, tolerance=1e-4), solver=NormalCG(tolerance=1e-4)),
    AID(inner=STEPS, solver=FixedPoint(step_size=0.7, tolerance=1e-3)),
    AID(inner=STEPS, solver=Neumann(step_size=0.7, iterations=3)),
    AID(inner=STEPS, solver=HeavyBallLinear(step_size=0.7, momentum=0.3, iterations=3)),
    StocBiONeumann(inner=STEPS, eta=0.7, Q=3),
    ITD(inner=STEPS),
    ITD(inner=STEPS, truncate=2, memory="remat"),
    ITD(inner=STEPS, memory="mixed"),
    PZOBO(inner=STEPS, Q=3),
    Chunked(estimator=ITD(inner=STEPS), size=2),
    Chunked(estimator=AID(inner=STEPS, solver=CG(tolerance=1e-4)), size=1),
]


def many(shared: bool) -> BilevelProblem:
    return BilevelProblem(
        Logistic.outer_loss, Logistic.inner_loss, lambda x: torch.zeros(B, 4, dtype=DOUBLE), batched=B, shared_x=shared
    ).with_batch(outer=OUTER, inner=INNER)


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda each: type(each).__name__)
@pytest.mark.parametrize("shared", [True, False])
def test_batched_is_looped(estimator: Estimator, shared: bool) -> None:
    x = 0.3 * (noise(4) if shared else noise(B, 4)) - 1
    found = hypergradient(many(shared), x, None, estimator)
    alone = [hypergradient(task.problem, x if shared else x[k], None, estimator) for k, task in enumerate(TASKS)]
    values = torch.stack([each.value for each in alone])
    torch.testing.assert_close(found.value, values.mean(0) if shared else values, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(found.inner, torch.stack([each.inner for each in alone]), rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(found.diagnostics.loss, torch.stack([each.diagnostics.loss for each in alone]).mean())
    if found.dual is not None:
        duals = torch.stack([each.dual for each in alone])
        torch.testing.assert_close(found.dual, duals, rtol=1e-10, atol=1e-12)


def test_a_count_is_one_for_each_problem() -> None:
    found = hypergradient(many(True), noise(4) - 1, None, AID(inner=STEPS, solver=CG(iterations=2)))
    assert found.diagnostics.counts.as_dict() == {"gc_f": B, "gc_g": 7 * B, "jvp": B, "hvp": 2 * B}


def test_a_stream_may_have_the_axis_of_problems() -> None:
    """Every problem gets the examples of the same numbers from its own data."""
    stream = Sampled(OUTER, INNER, outer_size=4, inner_size=5, axis=1)
    problem = dataclasses.replace(many(True), stream=stream)
    x = noise(4) - 1
    found = hypergradient(problem, x, None, StocBiONeumann(inner=STEPS, eta=0.5, Q=2), step=3, seed=7)
    values = []
    for k in range(B):

        class One:
            k: int

            def __init__(self, k: int) -> None:
                self.k = k

            def __call__(self, draw: Draw) -> Any:
                return tuple(leaf[self.k] for leaf in stream(draw))

            def samples(self, draw: Draw) -> int:
                return 1

        alone = dataclasses.replace(TASKS[k].problem, stream=One(k))
        values.append(hypergradient(alone, x, None, StocBiONeumann(inner=STEPS, eta=0.5, Q=2), step=3, seed=7).value)
    torch.testing.assert_close(found.value, torch.stack(values).mean(0), rtol=1e-11, atol=1e-13)


def test_one_batch_may_serve_all_problems() -> None:
    """Several ``x`` on the same data."""
    task = TASKS[0].problem
    problem = dataclasses.replace(
        task, batched=B, shared_x=False, shared_batch=True, init_inner=lambda x: torch.zeros(B, 4, dtype=DOUBLE)
    )
    x = 0.3 * noise(B, 4) - 1
    found = hypergradient(problem, x, None, AID(inner=STEPS, solver=CG(iterations=2)))
    for k in range(B):
        alone = hypergradient(task, x[k], None, AID(inner=STEPS, solver=CG(iterations=2)))
        torch.testing.assert_close(found.value[k], alone.value, rtol=1e-11, atol=1e-13)


def test_without_gradients_enabled() -> None:
    """As in a validation step."""
    x = 0.3 * noise(4) - 1
    for estimator in ESTIMATORS:
        with torch.no_grad():
            found = hypergradient(many(True), x, None, estimator)
        assert torch.equal(found.value, hypergradient(many(True), x, None, estimator).value)
        assert not found.value.requires_grad
        assert not found.inner.requires_grad


def test_groups_are_those_of_each_problem() -> None:
    """A proximal step on B problems with x of their own."""
    algorithm = ProximalBiO(estimator=Exact(inner=STEPS), prox=GroupL1(0.3), step_size=0.5, momentum=None)
    x = 0.3 * noise(B, 4) - 1
    found = run(many(False), algorithm, x, 3)
    for k, task in enumerate(TASKS):
        torch.testing.assert_close(found.x[k], run(task.problem, algorithm, x[k], 3).x, rtol=1e-11, atol=1e-13)


def test_a_module_is_an_inner_variable() -> None:
    """Parameters of a module by functional_call, against the same loss in plain tensors."""
    from metalearn.bilevel import parameters_as_inner

    net = torch.nn.Linear(3, 1).double()
    call, init = parameters_as_inner(net)
    z, t = noise(8, 3), noise(8, 1, seed=1)

    def inner(x: Tensor, y: Any, _: Any) -> Tensor:
        return ((call(y, z) - t) ** 2).mean() + x.exp() * sum((p * p).sum() for p in y.values())

    def outer(x: Tensor, y: Any, _: Any) -> Tensor:
        return ((call(y, z) + t) ** 2).mean()

    before = {name: value.detach().clone() for name, value in net.named_parameters()}
    problem = BilevelProblem(outer, inner, init)
    x = torch.tensor(-1.0, dtype=DOUBLE)
    found = hypergradient(
        problem, x, None, AID(inner=GradientDescent(step_size=0.1, tolerance=1e-11), solver=CG(tolerance=1e-11))
    )
    wide = torch.cat([z, torch.ones(8, 1, dtype=DOUBLE)], 1)

    def phi(x: Tensor) -> Tensor:
        w = torch.linalg.solve(wide.T @ wide / 8 + x.exp() * torch.eye(4, dtype=DOUBLE), wide.T @ t / 8)
        return ((wide @ w + t) ** 2).mean()

    assert abs(float(found.value - torch.func.grad(phi)(x))) < 1e-9
    assert all(torch.equal(before[name], value) for name, value in net.named_parameters())
    assert all(value.grad is None for value in net.parameters())


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_chunks_see_their_share(size: int) -> None:
    """Of data drawn for all problems, of one batch for all, of warm starts; and no more problems at once than asked for."""
    point = AID(inner=STEPS, solver=CG(iterations=2))
    chunked = Chunked(estimator=point, size=size)
    seen: list[int] = []

    class Seen(AID):
        def estimate(self, oracles: Any, x: Tensor, y: Tensor, v: Tensor | None, step: int) -> Any:
            seen.append(len(y))
            return super().estimate(oracles, x, y, v, step)

    drawn = dataclasses.replace(many(True), stream=Sampled(OUTER, INNER, outer_size=4, inner_size=5, axis=1))
    shared = dataclasses.replace(many(False), stream=TASKS[0].problem.stream, shared_batch=True)
    for problem, x in ((many(True), noise(4)), (many(False), noise(B, 4)), (drawn, noise(4)), (shared, noise(B, 4))):
        runs = [
            run(problem, BiO(estimator=each, step_size=0.1), 0.3 * x - 1, 3, seed=5)
            for each in (point, chunked, Chunked(estimator=Seen(inner=STEPS, solver=CG(iterations=2)), size=size))
        ]
        for each in runs[1:]:
            torch.testing.assert_close(each.x, runs[0].x, rtol=1e-11, atol=1e-13)
            for name in ("y", "v"):
                torch.testing.assert_close(each.state[name], runs[0].state[name], rtol=1e-10, atol=1e-12)
            assert each.state["counts"] == runs[0].state["counts"]
            growth, expected = each.state["growth"], runs[0].state["growth"]
            assert (growth is None) == (expected is None) == (problem is drawn)
            if growth is not None:
                torch.testing.assert_close(growth, expected, rtol=1e-9, atol=1e-12)
    assert max(seen) == min(size, B)


def test_chunks_have_the_inner_solver_of_their_estimator() -> None:
    assert Chunked(estimator=ITD(inner=STEPS), size=2).inner == STEPS
    with pytest.raises(ConfigError, match=r"Chunked\(size=0\), but it must be a whole number, at least 1; use 4"):
        Chunked(estimator=AID(), size=0)
    with pytest.raises(ConfigError, match=r"Chunked\(inner=GradientDescent.*give inner to the estimator alone"):
        Chunked(estimator=AID(), inner=STEPS, size=2)
