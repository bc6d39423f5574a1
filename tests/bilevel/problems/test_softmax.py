"""The constants of the problems on linear models: nothing sampled exceeds them, and the certificates made of them hold."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, jacrev

from metalearn.bilevel import (
    AID,
    CG,
    BilevelProblem,
    Constants,
    Exact,
    GradientDescent,
    certify,
    cleaning_constants,
    cleaning_problem,
    hypergradient,
    regularization_problem,
)
from metalearn.bilevel.problems.softmax_bounds import GRADIENT, HESSIAN, THIRD, design_of
from tests.bilevel.made import DOUBLE, noise
from tests.bilevel.problems.test_real_problems import part

CLASSES = 3


def hessian(f: Callable[..., Tensor], argnums: int = 0) -> Callable[..., Tensor]:
    """By reverse mode twice."""
    return jacrev(grad(f, argnums=argnums), argnums=argnums)


def third(z: Tensor, a: Tensor) -> float:
    """The derivative of ``a' grad^2 l a`` along ``a``."""
    p = z.softmax(0)
    centred = a - p @ a
    return float(p @ centred**3)


def test_derivatives_of_the_cross_entropy() -> None:
    """Random logits and directions stay below the three numbers, by autograd; each is attained."""
    label = torch.tensor(0)
    worst = [0.0, 0.0, 0.0]
    for seed in range(300):
        z, a = 3 * noise(4, seed=seed), noise(4, seed=1000 + seed)
        a = a / a.norm()
        along = grad(lambda z, a=a: a @ hessian(lambda z: F.cross_entropy(z, label))(z) @ a)(z)
        assert abs(float(along @ a) - third(z, a)) < 1e-12
        bend = torch.linalg.eigvalsh(hessian(lambda z: F.cross_entropy(z, label))(z))[-1]
        slope = grad(lambda z: F.cross_entropy(z, label))(z).norm()
        found = (float(slope), float(bend), max(float(along.norm()), abs(third(z, a))))
        worst = [max(pair) for pair in zip(worst, found, strict=True)]
    assert worst[0] <= GRADIENT
    assert worst[1] <= HESSIAN
    assert worst[2] <= THIRD
    far = torch.tensor([-40.0, 40.0], dtype=DOUBLE)
    assert abs(float(grad(lambda z: F.cross_entropy(z, label))(far).norm()) - GRADIENT) < 1e-12
    a = torch.tensor([1.0, -1.0], dtype=DOUBLE) / math.sqrt(2)
    even = torch.zeros(2, dtype=DOUBLE)
    assert abs(float(a @ hessian(lambda z: F.cross_entropy(z, label))(even) @ a) - HESSIAN) < 1e-12
    p = (3 - math.sqrt(3)) / 6
    assert abs(third(torch.tensor([p, 1 - p], dtype=DOUBLE).log(), a) - THIRD) < 1e-12


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(30, 6), (6, 30), (700, 600)])
def test_a_design_by_its_singular_values(shape: tuple[int, int], bias: bool) -> None:
    """Exact where no entry is negative or the matrix is small, else a bound; the same for sparse matrices without signs."""
    signed = noise(*shape)
    for x in (signed, signed.abs(), torch.where(signed > 0.5, signed, 0.0)):
        whole = torch.cat([x, torch.ones(len(x), 1, dtype=DOUBLE)], 1) if bias else x
        found, exact = design_of(x, bias), float(torch.linalg.matrix_norm(whole, 2)) ** 2 / len(x)
        assert exact <= found.eigenvalue
        if min(shape) <= 30 or x is not signed:
            assert found.eigenvalue <= exact * 1.001
        assert found.row == pytest.approx(float(whole.norm(dim=1).max()))
        assert found.column == pytest.approx(float(whole.abs().mean(0).max()))
        if x is not signed:
            for layout in (x.to_sparse_coo(), x.to_sparse_coo().coalesce().to_sparse_csr()):
                assert design_of(layout, bias).eigenvalue == pytest.approx(found.eigenvalue)


def made(kind: str, l2: float) -> tuple[BilevelProblem, Tensor, Constants]:
    """A small instance with this curvature of the penalty, a point, and the constants there."""
    train, val = part(0, count=20), part(1)
    if kind == "cleaning":
        problem, x = cleaning_problem(train, val, classes=CLASSES, l2=l2), noise(20, seed=5)
        return problem, x, problem.constants
    problem = regularization_problem(train, val, classes=CLASSES)
    x = 0.2 * noise(5, seed=5) + math.log(2 * l2 * CLASSES)
    assert problem.constants_at is not None
    return problem, x, problem.constants_at(x)


@pytest.mark.parametrize("kind", ["cleaning", "regularization"])
def test_no_sample_exceeds_a_constant(kind: str) -> None:
    """Dense derivatives at random weights, near and far."""
    problem, x, constants = made(kind, 0.05)
    assert problem.stream is not None
    inner, outer = problem.stream.inner, problem.stream.outer  # type: ignore[attr-defined]
    if kind == "regularization":
        inner, outer = ((each[0], getattr(each[1], "matrix", each[1]), each[2]) for each in (inner, outer))
    shape = problem.init_inner(x).shape
    tight = dict.fromkeys(("L_xy", "rho_J", "rho_H", "L_fyy", "M", "L_upper"), 0.0)
    solved = hypergradient(problem, x, None, AID(inner=GradientDescent(step_size=0.3, tolerance=1e-10))).inner

    def g(x: Tensor, w: Tensor) -> Tensor:
        return problem.inner_loss(x, w.reshape(shape), inner)

    def f(w: Tensor) -> Tensor:
        return problem.outer_loss(x, w.reshape(shape), outer)

    def jacobian(w: Tensor) -> Tensor:
        return jacrev(grad(g, argnums=1), argnums=0)(x, w)

    for seed in range(40):
        w = 10.0 ** (seed % 4 - 2) * noise(shape.numel(), seed=seed)
        other = w + 10.0 ** (seed % 3 - 2) * noise(shape.numel(), seed=100 + seed)
        gap = (w - other).norm()
        H, H_other = (hessian(g, argnums=1)(x, point) for point in (w, other))
        assert float(torch.linalg.eigvalsh(H)[0]) >= constants.mu * (1 - 1e-9)  # type: ignore[operator]
        found = {
            "L_xy": torch.linalg.matrix_norm(jacobian(w if kind == "cleaning" else solved.flatten()), 2),
            "rho_J": torch.linalg.matrix_norm(jacobian(w) - jacobian(other), 2) / gap,
            "rho_H": torch.linalg.matrix_norm(H - H_other, 2) / gap,
            "L_upper": torch.linalg.eigvalsh(H)[-1],
            "L_fyy": torch.linalg.eigvalsh(hessian(f)(w))[-1],
            "M": grad(f)(w).norm(),
        }
        for name, value in found.items():
            tight[name] = max(tight[name], float(value) / getattr(constants, name))
    assert max(tight.values()) <= 1 + 1e-9
    assert min(tight.values()) > 0.02, tight  # of the right order


def test_examples_that_share_a_weight() -> None:
    """The coupling grows with how many they are."""
    train = part(0)
    twice = (torch.cat([train[0], train[0]]), torch.cat([train[1], train[1]]), torch.cat([train[2], train[2]]))
    one, two = (cleaning_constants(each, part(1), 0.01) for each in (train, twice))
    assert two.L_xy == pytest.approx(one.L_xy)  # two halves of a mean
    assert two.rho_J == pytest.approx(one.rho_J)


ESTIMATORS: dict[str, Callable[[], AID]] = {
    f"{steps} {iterations}": lambda steps=steps, iterations=iterations: AID(  # type: ignore[misc]
        inner=GradientDescent(step_size=0.3, steps=steps), solver=CG(iterations=iterations)
    )
    for steps, iterations in ((0, 1), (3, 3), (30, 10))
}


@pytest.mark.parametrize("kind", ["cleaning", "regularization"])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_certificates_hold(kind: str, name: str) -> None:
    """Against the dense solution; loose by the square of the condition number, as the documentation says."""
    for l2 in (0.3, 0.02):
        problem, x, _ = made(kind, l2)
        exact = Exact(inner=GradientDescent(step_size=0.3, tolerance=1e-13, max_steps=100_000))
        found = hypergradient(problem, x, None, ESTIMATORS[name]())
        error = float((found.value - hypergradient(problem, x, None, exact).value).norm())
        plain, sharp = found.diagnostics.certificate, certify(problem, x, found)
        assert plain is not None
        assert error <= float(plain)
        assert l2 < 0.3 or float(plain) < 300 * error
        assert float(sharp.lower) <= error * (1 + 1e-6)
        assert error <= float(sharp.upper) * (1 + 1e-6)
        assert float(sharp.upper) <= 3.001 * float(sharp.lower)


@pytest.mark.parametrize("kind", ["cleaning", "regularization"])
def test_a_tolerance_is_kept(kind: str) -> None:
    problem, x, _ = made(kind, 0.1)
    exact = Exact(inner=GradientDescent(step_size=0.3, tolerance=1e-12, max_steps=100_000))
    expected = hypergradient(problem, x, None, exact).value
    estimator = AID(inner=GradientDescent(step_size=0.3, steps=1), tolerance=1e-4)
    found = hypergradient(problem, x, None, estimator)
    assert found.diagnostics.certificate is not None
    assert float((found.value - expected).norm()) <= float(found.diagnostics.certificate) <= 1e-4


def test_penalties_out_of_range_are_not_certified() -> None:
    problem, x, _ = made("regularization", 0.1)
    assert problem.constants_at is not None
    for bad in (-2000.0, 2000.0, float("nan")):
        assert not problem.constants_at(torch.full_like(x, bad)).knows("mu", "rho_J")


def test_the_mixed_derivative_of_cleaning_comes_up_to_its_bound() -> None:
    """One example whose weight is a half and whose class the model is sure to be another: ``|J| -> sqrt 2 |(x, 1)| / 4``."""
    inputs = torch.tensor([[0.6, -0.8]], dtype=torch.float64)
    train = torch.zeros(1, dtype=torch.long), inputs, torch.zeros(1, dtype=torch.long)
    made = cleaning_problem(train, train, classes=3)
    w = torch.zeros(3, 3, dtype=torch.float64)
    w[1] = 40 * torch.tensor([0.6, -0.8, 1.0], dtype=torch.float64)
    mixed = torch.func.jacrev(torch.func.grad(made.inner_loss, 1), 0)(torch.zeros(1, dtype=torch.float64), w, train)
    assert made.constants.L_xy is not None
    assert float(mixed.norm()) == pytest.approx(made.constants.L_xy, rel=1e-6)
