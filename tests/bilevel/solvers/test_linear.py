"""The linear solvers against dense solves and their rates."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from metalearn.bilevel import (
    CG,
    CGOrMinRes,
    FixedPoint,
    HeavyBallLinear,
    LinearSolver,
    MinRes,
    Neumann,
    NormalCG,
    heavy_ball,
)
from metalearn.errors import BilevelError
from tests.bilevel.made import DOUBLE, noise, relative


def matrix(values: list[float], seed: int = 0) -> Tensor:
    basis = torch.linalg.qr(noise(len(values), len(values), seed=seed))[0]
    return (basis * torch.tensor(values, dtype=DOUBLE)) @ basis.T


BALL = heavy_ball(0.1, 1.0)
ITERATIVE: list[LinearSolver] = [
    CG(tolerance=1e-11),
    NormalCG(tolerance=1e-11),
    FixedPoint(step_size=1.0, tolerance=1e-11),
    Neumann(step_size=1.0, tolerance=1e-11),
    HeavyBallLinear(step_size=BALL.step_size, momentum=BALL.momentum, tolerance=1e-11),
]


@pytest.mark.parametrize("solver", ITERATIVE, ids=lambda each: type(each).__name__)
@pytest.mark.parametrize("warm", [False, True])
def test_reaches_the_dense_solution(solver: LinearSolver, warm: bool) -> None:
    a, b = matrix([0.1, 0.2, 0.5, 0.7, 1.0]), noise(5, seed=1)
    found = solver.solve(lambda v: a @ v, b, noise(5, seed=2) if warm else None)
    assert relative(found.v, torch.linalg.solve(a, b)) < 1e-9
    assert abs(float(found.residual) - float((a @ found.v - b).norm())) < 1e-13


@pytest.mark.parametrize("distinct", [1, 2, 3])
def test_cg_ends_after_as_many_iterations_as_there_are_eigenvalues(distinct: int) -> None:
    """Also where the first iteration is exact, the answer is the solution and not the start."""
    a = matrix([[0.3, 1.0, 2.0][k % distinct] for k in range(9)])
    b = noise(9, seed=4)
    found = CG(iterations=distinct).solve(lambda v: a @ v, b)
    assert relative(found.v, torch.linalg.solve(a, b)) < 1e-12
    if distinct > 1:
        assert relative(CG(iterations=distinct - 1).solve(lambda v: a @ v, b).v, torch.linalg.solve(a, b)) > 1e-3
    assert CG(iterations=50).solve(lambda v: a @ v, b).iterations < 20


def test_cg_keeps_to_its_rate() -> None:
    a = matrix(torch.logspace(-2, 0, 40, dtype=DOUBLE).tolist())
    b = noise(40, seed=5)
    exact = torch.linalg.solve(a, b)
    rate = (10 - 1) / (10 + 1)
    for count in (1, 5, 10, 20):
        error = CG(iterations=count).solve(lambda v: a @ v, b).v - exact
        assert (error @ a @ error) ** 0.5 <= 2 * rate**count * (exact @ a @ exact) ** 0.5


def test_batched_problems_have_step_lengths_of_their_own() -> None:
    """Systems of other scales beside each other, one of them solved at once: each as if it were alone."""
    systems = [matrix([1.0] * 4), matrix([0.1, 0.2, 0.5, 1.0], 1), 0.01 * matrix([0.1, 0.4, 0.5, 1.0], 2)]
    stacked, b = torch.stack(systems), noise(3, 4, seed=3)
    b[0] = 0
    for solver in (
        CG(iterations=3),
        CG(tolerance=1e-6),
        NormalCG(iterations=2),
        FixedPoint(step_size=1.0, iterations=5),
    ):
        found = solver.solve(lambda v: (stacked @ v.unsqueeze(-1)).squeeze(-1), b)
        for k, a in enumerate(systems):
            alone = solver.solve(lambda v, a=a: a @ v, b[k])  # type: ignore[misc]
            torch.testing.assert_close(found.v[k], alone.v, rtol=1e-10, atol=1e-14)


def test_normal_cg_solves_an_indefinite_system() -> None:
    a, b = matrix([-1.0, 0.5, 1.0]), noise(3, seed=1)
    assert relative(NormalCG(iterations=3).solve(lambda v: a @ v, b).v, torch.linalg.solve(a, b)) < 1e-10


def test_heavy_ball_is_the_written_recursion() -> None:
    a, b = matrix([0.1, 0.4, 1.0]), noise(3, seed=1)
    v = before = noise(3, seed=2)
    start = v
    for _ in range(6):
        v, before = v - 0.7 * (a @ v - b) + 0.3 * (v - before), v
    found = HeavyBallLinear(step_size=0.7, momentum=0.3, iterations=6).solve(lambda v: a @ v, b, start)
    assert relative(found.v, v) < 1e-13


@pytest.mark.parametrize("solver", [CG, NormalCG, MinRes, CGOrMinRes, FixedPoint, Neumann, HeavyBallLinear])
def test_a_tolerance_that_is_not_reached_names_the_solver(solver: Any) -> None:
    """Also where the system is positive definite, and conjugate gradients alone have run."""
    a, b = matrix(torch.logspace(-2, 0, 12, dtype=DOUBLE).tolist()), noise(12, seed=1)
    steps = {FixedPoint: {"step_size": 1.0}, Neumann: {"step_size": 1.0},
             HeavyBallLinear: {"step_size": 1.0, "momentum": 0.5}}  # fmt: skip
    made = solver(tolerance=1e-9, max_iterations=3, **steps.get(solver, {}))
    with pytest.raises(BilevelError, match=rf"^{solver.__name__} reached \|H v - b\| = .* in 3 iterations"):
        made.solve(lambda v: a @ v, b)


def test_a_solver_of_your_own_gives_its_iterates() -> None:
    """Richardson's method with a step of its own; its run, damping and errors are those of the package."""

    class Richardson(LinearSolver):
        def iterates(self, product: Any, b: Tensor, v: Tensor, r: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
            while True:
                v, r = v + 0.9 * r, r - 0.9 * product(r)
                yield v, r

    a, b = matrix([0.1, 0.4, 1.0]), noise(3, seed=1)
    found = Richardson(tolerance=1e-11, damping=0.2).solve(lambda v: a @ v, b)
    assert relative(found.v, torch.linalg.solve(a + 0.2 * torch.eye(3, dtype=DOUBLE), b)) < 1e-9
    with pytest.raises(BilevelError, match="residual .* of Richardson grew from .* has the curvature -0.5"):
        Richardson(iterations=30).solve(lambda v: -0.5 * v, b)
    with pytest.raises(NotImplementedError, match="LinearSolver must define iterates"):
        LinearSolver(iterations=3).solve(lambda v: a @ v, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "solver", [CG(iterations=5), CGOrMinRes(iterations=5), NormalCG(iterations=5)], ids=lambda each: type(each).__name__
)
def test_warm_starts_towards_zero_may_underflow(
    solver: LinearSolver, dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a right-hand side each start is a rounding error of the one before. No curvature is seen in what is left."""
    a = matrix([0.1, 0.1, 0.1, 0.3]).to(dtype)
    v = torch.ones(2, 4, dtype=dtype)
    b = torch.stack([torch.zeros(4), torch.ones(4)]).to(dtype)
    for _ in range(40):
        v = solver.solve(lambda v: v @ a, b, v).v
    assert float(v[0].abs().max()) < 1e-15
    torch.testing.assert_close(v[1] @ a, b[1], rtol=1e-5, atol=0)
    assert not caplog.records
