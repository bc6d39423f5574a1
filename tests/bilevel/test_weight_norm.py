"""torch's fused weight normalisation has a wrong second derivative: difference quotients say so."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.parametrizations import weight_norm

from metalearn.bilevel import AID, ITD, PZOBO, BilevelProblem, GradientDescent, hypergradient
from metalearn.errors import BilevelError

STEPS = GradientDescent(step_size=0.1, steps=15)


def plain(v: Tensor, g: Tensor) -> Tensor:
    return v * (g / torch.linalg.vector_norm(v, dim=1, keepdim=True))


class Weight(nn.Module):
    """A weight that is a module's output."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(rows, columns))

    def forward(self) -> Tensor:
        return self.weight


def fused(v: Tensor, g: Tensor) -> Tensor:
    """By torch's own parametrization."""
    names = ("parametrizations.weight.original0", "parametrizations.weight.original1")
    module = weight_norm(Weight(*v.shape))
    return functional_call(module, dict(zip(names, (g, v), strict=True)), ())


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
