"""torch's fused weight normalisation has a wrong second derivative: difference quotients say so."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from metalearn.bilevel import AID, ITD, PZOBO, BilevelProblem, GradientDescent, hypergradient
from metalearn.errors import BilevelError

STEPS = GradientDescent(step_size=0.1, steps=15)


def plain(v: Tensor, g: Tensor) -> Tensor:
    return v * (g / torch.linalg.vector_norm(v, dim=1, keepdim=True))


def fused(v: Tensor, g: Tensor) -> Tensor:
    return torch._weight_norm(v, g, 0)


def make_problem(weight: Callable[[Tensor, Tensor], Tensor]) -> BilevelProblem:
    generator = torch.Generator().manual_seed(0)
    inputs, targets = (torch.randn(6, n, generator=generator, dtype=torch.float64) for n in (3, 2))
    start = {name: torch.randn(2, n, generator=generator, dtype=torch.float64) for name, n in (("v", 3), ("g", 1))}

    def inner(x: Tensor, y: dict[str, Tensor], _: None) -> Tensor:
        fit = ((inputs @ weight(**y).T - targets) ** 2).mean()
        return fit + x.exp().sum() * sum((value**2).sum() for value in y.values())

    def outer(x: Tensor, y: dict[str, Tensor], _: None) -> Tensor:
        return ((inputs @ plain(**y).T - 1.0) ** 2).mean()

    return BilevelProblem(outer, inner, lambda _: start)


def test_the_plain_formula_agrees_with_differences_and_the_fused_one_is_refused() -> None:
    x, step, estimator = torch.full((2,), -2.0, dtype=torch.float64), 1e-6, ITD(inner=STEPS)
    found = hypergradient(make_problem(plain), x, estimator=estimator).value
    for index in range(2):
        values = []
        for sign in (1, -1):
            moved = x.clone()
            moved[index] += sign * step
            problem = make_problem(plain)
            inner = hypergradient(problem, moved, estimator=estimator).inner
            values.append(float(problem.outer_loss(moved, inner, None)))
        assert float(found[index]) == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-6)
    for refused in (estimator, ITD(inner=STEPS, memory="remat"), AID(inner=STEPS)):
        with pytest.raises(BilevelError, match="inner_loss uses weight_norm, .* compute the weight as v"):
            hypergradient(make_problem(fused), x, estimator=refused)
    free = [hypergradient(make_problem(each), x, estimator=PZOBO(inner=STEPS)).value for each in (plain, fused)]
    torch.testing.assert_close(free[0], free[1], rtol=1e-6, atol=1e-9)
