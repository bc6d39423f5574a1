"""Under autocast to bfloat16 only the losses are rounded: hypergradients against plain loops in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import grad, jacrev, vmap

from metalearn.bilevel import (
    AID,
    CG,
    ITD,
    PZOBO,
    BilevelProblem,
    Estimator,
    Exact,
    FixedPoint,
    GradientDescent,
    HeavyBallLinear,
    Hypergradient,
    Neumann,
    NormalCG,
    StocBiONeumann,
    hypergradient,
    solve_inner,
)
from tests.bilevel.made import DOUBLE, Logistic, noise, relative
from tests.bilevel.test_batched import B

STEPS = 12
INNER = GradientDescent(step_size=0.3, steps=STEPS)
ROUNDING = 0.02
"""A few units of bfloat16, whose eps is 0.0078."""


class Plain(Logistic):
    """Without ``x`` in ``f``, so that nothing but the response is measured."""

    @staticmethod
    def outer_loss(x: Tensor, y: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        z, t = batch
        return torch.nn.functional.softplus(z @ y).mean() - (t * (z @ y)).mean()

    @property
    def single(self) -> BilevelProblem:
        """In float32."""
        problem = BilevelProblem(self.outer_loss, self.inner_loss, lambda x: torch.zeros(self.features))
        sets = (tuple(part.float() for part in each) for each in (self.val, self.train))
        return problem.with_batch(*sets)

    def end(self, x: Tensor) -> Tensor:
        y = torch.zeros(self.features, dtype=DOUBLE)
        for _ in range(STEPS):
            y = y - 0.3 * grad(self.inner_loss, argnums=1)(x, y, self.train)
        return y

    def unrolled(self, x: Tensor) -> Tensor:
        return grad(lambda x: self.outer_loss(x, self.end(x), self.val))(x)

    def implicit(self, x: Tensor) -> Tensor:
        """At the end of the plain loop, by a dense solve."""
        y = self.end(x)
        slope = grad(self.inner_loss, argnums=1)
        bend = jacrev(slope, argnums=1)(x, y, self.train)
        v = torch.linalg.solve(bend, grad(self.outer_loss, argnums=1)(x, y, self.val))
        return -jacrev(slope, argnums=0)(x, y, self.train).T @ v

    def differences(self, x: Tensor, directions: Tensor, mu: float) -> Tensor:
        y = self.end(x)
        responses = (vmap(self.end)(x + mu * directions) - y) / mu
        return (responses @ grad(self.outer_loss, argnums=1)(x, y, self.val)) @ directions / len(directions)


MADE = Plain(examples=40)
X = 0.3 * noise(4, seed=8) - 1
IMPLICIT: dict[str, Estimator] = {
    "cg": AID(inner=INNER, solver=CG(iterations=4)),
    "normal_cg": AID(inner=INNER, solver=NormalCG(iterations=8)),
    "fixed_point": AID(inner=INNER, solver=FixedPoint(step_size=0.5, iterations=60)),
    "neumann": AID(inner=INNER, solver=Neumann(step_size=0.5, iterations=60)),
    "heavy_ball": AID(inner=INNER, solver=HeavyBallLinear(step_size=0.5, momentum=0.3, iterations=40)),
    "to a tolerance": AID(inner=INNER, solver=CG(tolerance=1e-5)),
    "exact": Exact(inner=INNER),
    "stoc_bio": StocBiONeumann(inner=INNER, eta=0.5, Q=60),
}
UNROLLED: dict[str, Estimator] = {memory: ITD(inner=INNER, memory=memory) for memory in ("store", "remat", "mixed")}  # type: ignore[arg-type]


def rounded(function: Callable[[], Hypergradient]) -> Hypergradient:
    with torch.autocast("cpu", torch.bfloat16):
        return function()


@pytest.mark.parametrize("name", [*IMPLICIT, *UNROLLED])
def test_only_the_losses_are_rounded(name: str) -> None:
    estimator = (IMPLICIT | UNROLLED)[name]
    found = rounded(lambda: hypergradient(MADE.single, X.float(), None, estimator))
    expected = MADE.unrolled(X) if name in UNROLLED else MADE.implicit(X)
    assert relative(found.value.double(), expected) < ROUNDING
    assert relative(found.inner.double(), MADE.end(X)) < ROUNDING
    exact = hypergradient(MADE.single, X.float(), None, estimator).value
    assert relative(found.value, exact) > 1e-5  # the losses were rounded, indeed
    for tensor in (found.value, found.inner, found.dual, *found.diagnostics[:3]):
        assert tensor is None or tensor.dtype is torch.float32
    residual = found.diagnostics.dual_residual
    if residual is not None and name not in ("normal_cg", "exact"):  # which see that the rounded H is not symmetric
        assert float(residual) < 1e-4  # far below the digits of bfloat16


@pytest.mark.parametrize("at_once", [1, 8])
def test_differences_of_runs_keep_their_digits(at_once: int) -> None:
    """PZOBO's runs are not rounded, whose differences are a hundredth of ``y``."""
    estimator = PZOBO(inner=INNER, Q=40, mu=1e-2, at_once=at_once)
    found = rounded(lambda: hypergradient(MADE.single, X.float(), None, estimator, seed=3))
    directions = torch.stack([_direction(estimator, number) for number in range(40)])
    assert relative(found.value.double(), MADE.differences(X, directions.double(), 1e-2)) < ROUNDING


def _direction(estimator: PZOBO, number: int) -> Tensor:
    from metalearn.bilevel import Oracles

    of_x, of_y, _ = MADE.single.layouts(X.float())
    return estimator.direction(Oracles(MADE.single, of_x, of_y, seed=3), X.float(), 0, number)


@pytest.mark.parametrize("name", ["cg", "store"])
def test_many_problems_at_once(name: str) -> None:
    """Each one's hypergradient is that of its plain loop."""
    each = [Plain(seed=10 * k, examples=40) for k in range(B)]
    sets = zip(*((p.val, p.train) for p in each), strict=True)
    val, train = (tuple(torch.stack(part).float() for part in zip(*one, strict=True)) for one in sets)
    problem = BilevelProblem(
        Plain.outer_loss, Plain.inner_loss, lambda x: torch.zeros(B, 4), batched=B, shared_x=False
    ).with_batch(val, train)
    xs = X + 0.1 * noise(B, 4, seed=4)
    found = rounded(lambda: hypergradient(problem, xs.float(), None, (IMPLICIT | UNROLLED)[name]))
    for k in range(B):
        expected = each[k].unrolled(xs[k]) if name == "store" else each[k].implicit(xs[k])
        assert relative(found.value[k].double(), expected) < ROUNDING


def test_the_inner_solution_as_a_function() -> None:
    x = X.float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = solve_inner(MADE.single, x, inner=INNER)
        loss = MADE.outer_loss(x, y, tuple(part.float() for part in MADE.val))
    loss.backward()
    assert y.dtype is torch.float32
    assert x.grad is not None
    assert relative(x.grad.double(), MADE.implicit(X)) < ROUNDING
