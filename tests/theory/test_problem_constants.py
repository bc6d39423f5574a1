"""The constants of bilevel problems, against dense derivatives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from metalearn import MAML, MLP, BilevelModule, MetalearnError
from metalearn.bilevel import BilevelProblem, aid_bio, quadratic
from metalearn.theory import measure_problem

EXACT = {"iterations": 40, "tolerance": 1e-8}


def test_a_quadratic_has_the_constants_that_it_was_made_with() -> None:
    made = quadratic(size=8, outer_size=3, kappa=20.0, seed=1)
    x = torch.randn(3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    known = made.problem.constants
    module = BilevelModule(made.problem, aid_bio(known), x)
    for measured in (measure_problem(made.problem, x, **EXACT), measure_problem(module, **EXACT)):
        assert measured.mu == pytest.approx(known.mu, rel=1e-6)
        assert pytest.approx(known.L, rel=1e-6) == measured.L
        assert measured.L_xy == pytest.approx(known.L_xy, rel=1e-6)


def inner_loss(x: Tensor, y: Tensor, batch: Any) -> Tensor:
    return (x.exp() * y.square()).sum() / 2 + (y.sum() * x.sin()).sum() + 0.1 * y.pow(4).sum()


def outer_loss(x: Tensor, y: Tensor, batch: Any) -> Tensor:
    return (y - 1).square().sum() + x.sum()


@pytest.mark.parametrize("shared", [True, False])
def test_of_several_problems_the_ends_are_those_of_dense_derivatives(shared: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    ys, xs = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64).unbind()
    x = xs[0] if shared else xs
    problem = BilevelProblem(
        outer_loss, inner_loss, lambda x: torch.zeros(3, 4, dtype=torch.float64), batched=3, shared_x=shared
    )
    measured = measure_problem(problem, x, ys, **EXACT)
    values, norms, slopes = [], [], []
    for index, y in enumerate(ys):
        own = x if shared else x[index]
        blocks: Any = torch.autograd.functional.hessian(lambda a, b: inner_loss(a, b, None), (own, y))
        values.append(torch.linalg.eigvalsh(blocks[1][1]))
        norms.append(torch.linalg.matrix_norm(blocks[1][0], ord=2))
        slopes.append((2 * (y - 1)).norm())
    ends = torch.stack(values)
    assert (measured.mu, measured.L) == pytest.approx((float(ends.min()), float(ends.max())), rel=1e-6)
    assert measured.L_xy == pytest.approx(float(torch.stack(norms).max()), rel=1e-6)
    assert pytest.approx(float(torch.stack(slopes).max()), rel=1e-6) == measured.M


CONCAVE = BilevelProblem(outer_loss, lambda x, y, batch: -y.square().sum() + (x * y).sum(), torch.zeros_like)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: measure_problem(CONCAVE, torch.ones(2)), "must be strongly convex in y"),
        (lambda: measure_problem(CONCAVE), "x is None"),
        (lambda: measure_problem(MAML(MLP(), loss="mse")), "problem is a MAML"),  # type: ignore[arg-type]
        (lambda: measure_problem(CONCAVE, torch.ones(2), iterations=0), "iterations is 0"),
    ],
)
def test_what_is_wrong_is_one_line(call: Any, text: str) -> None:
    with pytest.raises(MetalearnError, match=text) as caught:
        call()
    assert "\n" not in str(caught.value)
