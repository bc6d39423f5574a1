"""Oracle counts against what the losses themselves see of autograd."""

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
    CGOrMinRes,
    Chunked,
    Estimator,
    Exact,
    FixedPoint,
    GradientDescent,
    HeavyBall,
    HeavyBallLinear,
    MinRes,
    Nesterov,
    Neumann,
    NormalCG,
    OracleCounts,
    StocBiONeumann,
    hypergradient,
    solve_inner,
)
from tests.bilevel.made import DOUBLE, Logistic, noise
from tests.watched import Passes

B = 3
STEPS = GradientDescent(step_size=0.5, steps=4)
MADE = [Logistic(seed=10 * k) for k in range(B)]
TRAIN, VAL = (
    tuple(torch.stack(parts) for parts in zip(*(getattr(made, name) for made in MADE), strict=True))
    for name in ("train", "val")
)


def watched(problems: int | None, prepares: bool = False) -> tuple[BilevelProblem, Passes]:
    """Logistic regressions whose losses count."""
    passes = Passes()

    def inner(x: Tensor, y: Tensor, batch: Any) -> Tensor:
        batch = batch if prepares else prepare(x, batch)
        return passes.watch(Logistic.inner_loss(batch[0], passes.watch(y, "y"), batch[1:]), "g")

    def prepare(x: Tensor, batch: Any) -> Any:
        return passes.watch(x, "x"), *batch

    def outer(x: Tensor, y: Tensor, batch: Any) -> Tensor:
        return passes.watch(Logistic.outer_loss(x, y, batch), "f")

    shape = (4,) if problems is None else (problems, 4)
    problem = BilevelProblem(
        outer,
        inner,
        lambda x: torch.zeros(shape, dtype=DOUBLE),
        batched=problems,
        prepare=prepare if prepares else None,
    )
    if problems is None:
        return problem.with_batch(MADE[0].val, MADE[0].train), passes
    return problem.with_batch(VAL, TRAIN), passes


ESTIMATORS: dict[str, Estimator] = {
    "itd": ITD(inner=STEPS),
    "truncated": ITD(inner=STEPS, truncate=2),
    "heavy ball": ITD(inner=HeavyBall(step_size=0.5, momentum=0.3, steps=4)),
    "nesterov": ITD(inner=Nesterov(step_size=0.5, momentum=0.3, steps=4), truncate=3),
    "cg": AID(inner=STEPS, solver=CG(iterations=3)),
    "cg to a tolerance": AID(inner=GradientDescent(step_size=0.5, tolerance=1e-3), solver=CG(tolerance=1e-4)),
    "default": AID(inner=STEPS),
    "cg or min res": AID(inner=STEPS, solver=CGOrMinRes(iterations=2)),
    "normal cg": AID(inner=STEPS, solver=NormalCG(iterations=2)),
    "min res": AID(inner=STEPS, solver=MinRes(iterations=3)),
    "fixed point": AID(inner=STEPS, solver=FixedPoint(step_size=0.5, iterations=3)),
    "neumann": AID(inner=STEPS, solver=Neumann(step_size=0.5, iterations=3)),
    "heavy ball linear": AID(inner=STEPS, solver=HeavyBallLinear(step_size=0.5, momentum=0.3, iterations=3)),
    "exact": Exact(inner=STEPS),
    "stoc_bio": StocBiONeumann(inner=STEPS, eta=0.5, Q=3),
    "pzobo": PZOBO(inner=STEPS, Q=2),
}


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("problems", [None, B])
@pytest.mark.parametrize("warm", [False, True])
def test_of_every_estimator(name: str, problems: int | None, warm: bool) -> None:
    problem, passes = watched(problems)
    x = 0.3 * noise(4, seed=8) - 1
    dual = noise(4) if problems is None else noise(B, 4)
    found = hypergradient(problem, x, None, ESTIMATORS[name], dual=dual if warm else None)
    seen = passes.counts(problems or 1)
    if name == "stoc_bio":  # a graph for each product, none of whose gradients is of use
        seen.gc_g -= 4 * (problems or 1)
    assert found.diagnostics.counts == seen


@pytest.mark.parametrize("name", ["itd", "cg", "normal cg"])
def test_in_chunks(name: str) -> None:
    """Two chunks, of two problems and of one: autograd goes twice through what is counted for three."""
    problem, passes = watched(B)
    x = 0.3 * noise(4, seed=8) - 1
    found = hypergradient(problem, x, None, Chunked(estimator=ESTIMATORS[name], size=2)).diagnostics.counts
    seen = passes.counts(1)
    assert {key: 2 * value for key, value in found.as_dict().items()} == {
        key: B * value for key, value in seen.as_dict().items()
    }


@pytest.mark.parametrize("memory", ["store", "remat"])
def test_what_is_prepared_changes_no_count(memory: Any) -> None:
    """Products with ``J`` are counted a step, though they end at features, behind which there is one."""
    estimator, x = ITD(inner=STEPS, memory=memory), 0.3 * noise(4, seed=8) - 1
    (problem, passes), (whole, _) = watched(None, True), watched(None)
    found = hypergradient(problem, x, None, estimator).diagnostics.counts
    assert found == hypergradient(whole, x, None, ITD(inner=STEPS)).diagnostics.counts
    assert (found.jvp, passes.through["x"]) == (4, 1)


def test_of_the_inner_solution_as_a_function() -> None:
    problem, passes = watched(None)
    counts, x = OracleCounts(), (0.3 * noise(4, seed=8) - 1).requires_grad_()
    y = solve_inner(problem, x, inner=STEPS, solver=CG(iterations=3), counts=counts)
    assert counts == passes.counts()
    y.sum().backward()
    assert counts == dataclasses.replace(passes.counts(), gc_g=4)  # the graph of the products is no gradient
    assert (counts.jvp, counts.hvp) == (1, 3)


def test_counts_add() -> None:
    parts = [OracleCounts(1, 2, 3, 4), OracleCounts(gc_g=5), OracleCounts(hvp=1)]
    assert sum(parts, OracleCounts()) == OracleCounts(1, 7, 3, 5)
    total = parts[0]
    total += parts[1]
    assert total == parts[0] + parts[1]
    assert parts[0] == OracleCounts(1, 2, 3, 4)
