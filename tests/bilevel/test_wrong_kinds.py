"""What is of the wrong kind, and functions of the user's that fail: one line each, with what was given."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.bilevel import (
    AID,
    CG,
    ITD,
    L1,
    MRBO,
    PZOBO,
    VRBO,
    BilevelProblem,
    BiO,
    Box,
    Chunked,
    Constants,
    Exact,
    FixedPoint,
    GradientDescent,
    GroupL1,
    Nesterov,
    ProximalBiO,
    Sampled,
    StocBiONeumann,
    certify,
    hypergradient,
    parameters_as_inner,
    quadratic,
    run,
    solve_inner,
)
from metalearn.errors import BilevelError, ConfigError, ShapeError
from tests.bilevel.made import noise
from tests.bilevel.test_errors import STEPS, UNKNOWN, Q, X, Y, saying


def with_data(x: Tensor, y: Tensor, batch: Any) -> Tensor:
    z, t = batch
    return (z @ y - t).square().mean() + x @ x


BARE = BilevelProblem(with_data, with_data, lambda x: x.new_zeros(4))
BIO = BiO(estimator=AID(inner=STEPS), step_size=0.01)
PAIR = noise(6, 4, seed=5), noise(6, seed=6)
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("function", "pattern"),
    [
        (lambda: hypergradient(BARE, X), r"outer_loss failed with TypeError: cannot unpack .* It got x \[3\] float64, y \[4\] "
         r"float64, batch None; give data by problem.with_batch\(outer=..., inner=...\)"),
        (lambda: run(BARE, BIO, X, 2), "inner_loss failed with TypeError: .* batch None; give data by problem.with_batch"),
        (lambda: hypergradient(BARE.with_batch(outer=PAIR, inner=None), X), "inner_loss failed .* batch None; give data"),
        (lambda: hypergradient(BARE.with_batch(outer=None, inner=PAIR), X), "outer_loss failed .* batch None; give data"),
        (lambda: hypergradient(BARE.with_batch(outer=PAIR[:1], inner=PAIR), X), r"outer_loss failed with ValueError: not enough"),
        (lambda: hypergradient(BARE.with_batch(outer=(PAIR[0][:, :3], PAIR[1]), inner=PAIR), X),
         r"outer_loss failed with RuntimeError: .* batch \[6, 3\] float64, \[6\] float64; check its arguments, their shapes"),
        (lambda: hypergradient(BARE.with_batch(outer=PAIR, inner=(PAIR[0].float(), PAIR[1])), X),
         r"inner_loss failed with RuntimeError: .* batch \[6, 4\] float32, \[6\] float64; check"),
        (lambda: hypergradient(Q.problem, noise(7)), r"outer_loss failed with RuntimeError: .* It got x \[7\] float64, y \[4\]"),
        (lambda: hypergradient(dataclasses.replace(UNKNOWN, inner_loss=lambda x, y: y.sum()), X),  # type: ignore[arg-type,misc]
         "inner_loss failed with TypeError: .* takes 2 positional arguments but 3 were given"),
        (lambda: hypergradient(dataclasses.replace(UNKNOWN, init_inner=lambda: Y), X),  # type: ignore[arg-type,misc]
         r"init_inner failed with TypeError: .* It got x \[3\] float64; check"),
        (lambda: hypergradient(dataclasses.replace(UNKNOWN, inner_loss=lambda x, y, _: y.mul_(2).sum()), X),
         "inner_loss failed with RuntimeError: .*in-place"),
        (lambda: hypergradient(dataclasses.replace(UNKNOWN, inner_loss=lambda x, y, _: Once.apply(y)), X),
         "inner_loss uses Once, whose backward is once_differentiable"),
        (lambda: hypergradient(dataclasses.replace(UNKNOWN, inner_loss=lambda x, y, _: x.sum() * y.sum()), X),
         "grad_yy g is 0 along grad_y f"),
        (lambda: hypergradient(dataclasses.replace(UNKNOWN, inner_loss=lambda x, y, _: F.hardsigmoid(y).square().sum()), X),
         "the second derivative of inner_loss failed with RuntimeError: .*hardsigmoid_backward"),
    ],
)  # fmt: skip
def test_functions_that_fail_are_named_with_what_they_got(function: Callable[[], Any], pattern: str) -> None:
    saying(BilevelError, pattern, function)


class Once(torch.autograd.Function):
    """A sum of squares whose gradient cannot be differentiated."""

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        ctx.save_for_backward(y)
        return y.square().sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * cotangents[0]


@pytest.mark.parametrize(
    ("make", "pattern"),
    [
        (lambda: run(Q.problem, AID(), X), r"algorithm is an AID, an estimator, .* BiO\(estimator=AID\(...\), step_size=..."),
        (lambda: run(Q.problem, BiO, X), r"algorithm is <class .*BiO'>.* must be an Algorithm; use BiO\("),
        (lambda: hypergradient(Q.problem, X, None, BIO), r"estimator is a BiO, .* its estimator is BiO\(...\).estimator"),
        (lambda: hypergradient(Q.problem, X, None, "aid"), "estimator is 'aid'.* must be an estimator"),
        (lambda: hypergradient(X, Q.problem), r"problem is a tensor of shape \[3\].* must be a BilevelProblem; give"),
        (lambda: run(Q, BIO, X), "problem is a Quadratic.* must be a BilevelProblem"),
        (lambda: solve_inner(None, X, inner=STEPS), "problem is None.* must be a BilevelProblem"),
        (lambda: solve_inner(Q.problem, X, inner=AID()), "the inner of solve_inner is an AID.* must be an InnerSolver; use"),
        (lambda: certify(Q.problem, X, run(Q.problem, BIO, X, 1)), "result is a Run.* must be a Hypergradient; pass what"),
        (lambda: BilevelProblem(with_data, with_data, torch.zeros(4)),
         r"init_inner is a tensor of shape \[4\].* must be a function; write a function of x, such as lambda x: torch.zeros"),
        (lambda: BilevelProblem(with_data, 3.0, torch.zeros_like), r"inner_loss is 3.0.* must be a function; write a function"),
        (lambda: dataclasses.replace(BARE, stream=PAIR), "stream is a tuple.* must be a function; use problem.with_batch"),
        (lambda: dataclasses.replace(BARE, constants={"mu": 1.0}), r"constants is {'mu': 1.0}.* must be a Constants; use"),
        (lambda: dataclasses.replace(BARE, constants_at=Constants()), "constants_at is .*.* must be a function; write"),
        (lambda: hypergradient(dataclasses.replace(UNKNOWN, constants_at=lambda x: None), X),
         r"constants_at\(x\) is None.* must be a Constants; let it return"),
        (lambda: dataclasses.replace(BARE, batched=2.5), "batched is 2.5.* must be a whole number, at least 1; use None"),
        (lambda: run(Q.problem, BIO, X, "10"), r"run\(steps='10'\).* must be a whole number, at least 0; use 100"),
        (lambda: run(Q.problem, BIO, X, NAN), r"run\(steps=nan\).* must be a whole number, at least 0; use 100"),
        (lambda: run(Q.problem, BIO, X, INF), r"run\(steps=inf\).* must be a whole number, at least 0; use 100"),
        (lambda: run(Q.problem, BIO, X, 2.5), r"run\(steps=2.5\).* must be a whole number, at least 0; use 100"),
        (lambda: run(Q.problem, BIO, X, 2, every=1.5), r"run\(every=1.5\).* must be a whole number, at least 1; use 1"),
        (lambda: run(Q.problem, BIO, X, 2, seed="a"), r"run\(seed='a'\).* must be a whole number; use 0"),
        (lambda: run(Q.problem, BIO, X, 2, tolerance=NAN), r"run\(tolerance=nan\).* of at least 0; use 1e-6, or None"),
        (lambda: run(Q.problem, BIO, X, 2, callback=3), r"run\(callback=3\).* must be a function of a state and a record"),
        (lambda: run(Q.problem, BIO, state=run(Q.problem, BIO, X, 1)), "state is a Run, but .* use state=result.state"),
        (lambda: run(Q.problem, BIO, state={}), "state has no x or no y, .* use state=result.state"),
        (lambda: run(Q.problem, BIO, state=3), "state is 3.* must be a dict; use the state of an earlier run"),
        (lambda: hypergradient(Q.problem, X, step="a"), r"hypergradient\(step='a'\).* must be a whole number"),
        (lambda: hypergradient(Q.problem, X, counts={}), "counts is {}.* must be an OracleCounts; use OracleCounts"),
        (lambda: AID(inner=5), "the inner of AID is 5.* must be an InnerSolver; use inner=GradientDescent"),
        (lambda: AID(inner=CG(iterations=3)), "the inner of AID is a CG.* must be an InnerSolver"),
        (lambda: AID(solver=STEPS), "the solver of AID is a GradientDescent.* must be a LinearSolver; use solver=CG"),
        (lambda: AID(inner=STEPS, tolerance="a"), r"AID\(tolerance='a'\).* must be a number above 0; use 1e-6"),
        (lambda: ITD(inner=5), "the inner of ITD is 5"),
        (lambda: ITD(inner=STEPS, truncate=1.5), r"ITD\(truncate=1.5\).* must be a whole number; use None"),
        (lambda: PZOBO(inner=STEPS, Q="2"), r"PZOBO\(Q='2'\).* must be a whole number, at least 1; use 10"),
        (lambda: PZOBO(inner=STEPS, mu=INF), r"PZOBO\(mu=inf\).* must be a finite number above 0"),
        (lambda: StocBiONeumann(eta=INF, Q=2), r"StocBiONeumann\(eta=inf\).* must be a finite number above 0"),
        (lambda: StocBiONeumann(eta=0.1, Q=1.5), r"StocBiONeumann\(Q=1.5\).* must be a whole number, at least 1; use 3"),
        (lambda: StocBiONeumann(eta=0.1, Q=1, outer_size=0), r"StocBiONeumann\(outer_size=0\).* at least 1; use None"),
        (lambda: Exact(largest="a"), r"Exact\(largest='a'\).* must be a whole number, at least 1; use 4096"),
        (lambda: Chunked(estimator=BIO, size=2), "the estimator of Chunked is a BiO.* must be an Estimator"),
        (lambda: Chunked(estimator=AID(), size=1.5), r"Chunked\(size=1.5\).* must be a whole number, at least 1; use 4"),
        (lambda: BiO(estimator=AID, step_size=0.1), "the estimator of BiO is <class .*AID'>.* must be an Estimator"),
        (lambda: BiO(estimator=AID(), step_size="a"), r"BiO\(step_size='a'\).* must be a finite number above 0; use 0.1"),
        (lambda: VRBO(estimator=AID(), anchor=AID(), step_size=0.1, inner_step_size=0.1, period=1.5),
         r"VRBO\(period=1.5\).* must be a whole number, at least 1; use 3"),
        (lambda: VRBO(estimator=AID(), anchor=BIO, step_size=0.1, inner_step_size=0.1), "the anchor of VRBO is a BiO, but"),
        (lambda: MRBO(estimator=CG(iterations=1), step_size=0.1, inner_step_size=0.1), "the estimator of MRBO is a CG, but"),
        (lambda: ProximalBiO(estimator=AID(), prox=0.1, step_size=0.1), r"the prox of ProximalBiO is 0.1, .* use L1\(0.01\)"),
        (lambda: GradientDescent(step_size="0.1", steps=1), r"GradientDescent\(step_size='0.1'\).* above 0; use 1/L"),
        (lambda: GradientDescent(step_size=0.1, steps="3"), r"GradientDescent\(steps='3'\).* at least 0; use 10"),
        (lambda: GradientDescent(step_size=0.1, steps=NAN), r"steps=nan\).* must be a whole number, at least 0; use 10"),
        (lambda: GradientDescent(step_size=0.1, steps=INF), r"steps=inf\).* must be a whole number, at least 0; use 10"),
        (lambda: Nesterov(step_size=0.1, steps=1, momentum="a"), "momentum is 'a'.* of at least 0 and below 1; use 0.9"),
        (lambda: CG(iterations="3"), r"CG\(iterations='3'\).* must be a whole number, at least 0; use 10"),
        (lambda: CG(iterations=NAN), r"CG\(iterations=nan\).* must be a whole number, at least 0; use 10"),
        (lambda: FixedPoint(step_size=None, iterations=3), r"FixedPoint\(step_size=None\).* above 0; use 1/L"),
        (lambda: L1("a"), "weight is 'a'.* must be a number of at least 0; use 0.01"),
        (lambda: Box("a", 1.0), r"Box\(low='a'\).* must be a number"),
        (lambda: Constants(mu="a"), "constants.mu is 'a'.* must be a number above 0; leave it None"),
        (lambda: Sampled(X, X, inner_size=1.5), "inner_size is 1.5.* must be a whole number, at least 1; use None for all"),
        (lambda: parameters_as_inner(with_data), "module is the function with_data.* must be a Module"),
        (lambda: quadratic("a", 3, 5.0, 0), "size is 'a'.* must be a whole number, at least 1; use 5"),
    ],
)  # fmt: skip
def test_what_is_of_the_wrong_kind(make: Callable[[], Any], pattern: str) -> None:
    saying(ConfigError, pattern, make)


@pytest.mark.parametrize(
    ("make", "pattern"),
    [
        (lambda: hypergradient(Q.problem, X, Y, dual=Y.float()), "dual is torch.float32 on cpu, but y is torch.float64"),
        (lambda: hypergradient(Q.problem, X.to_sparse()), "x holds a torch.sparse_coo tensor, .* must be dense tensors"),
        (lambda: hypergradient(Q.problem, X.to("meta")), "x holds a tensor on the meta device, which has no data"),
        (lambda: hypergradient(Q.problem, X[:0]), "x has no entries, but it must have at least one; check its shape"),
        (lambda: hypergradient(Q.problem, X, AID()), "y holds a AID, but all its leaves must be floating-point tensors"),
        (lambda: certify(Q.problem, noise(5), hypergradient(Q.problem, X)), "result.value and x have different shapes"),
        (lambda: Sampled(PAIR, (PAIR[0], PAIR[1][:2])), "the inner data of Sampled have 6, 2 examples, .* the same number"),
        (lambda: Sampled([1, 2], PAIR), r"the outer data of Sampled hold \[1, 2\].* must be tensors with an axis 0"),
        (lambda: run(Q.problem, ProximalBiO(estimator=AID(), prox=GroupL1(0.1, dim=3), step_size=1e-3), X, 1),
         r"GroupL1\(dim=3\) meets a tensor of shape \[3\].* must be one of its 1 axes; use 0"),
    ],
)  # fmt: skip
def test_trees_that_cannot_be_used(make: Callable[[], Any], pattern: str) -> None:
    saying(ShapeError, pattern, make)


def test_whole_numbers_may_be_floats_and_tensors() -> None:
    expected = run(Q.problem, BiO(estimator=AID(inner=STEPS), step_size=0.001), X, 2)
    steps: Any = 3.0
    found = run(
        Q.problem,
        BiO(estimator=AID(inner=dataclasses.replace(STEPS, steps=steps)), step_size=0.001),
        X,
        torch.tensor(2),
    )  # type: ignore[arg-type]
    assert torch.equal(found.x, expected.x)
    assert [record.step for record in found.history] == [1, 2]


@pytest.mark.parametrize("memory", ["store", "mixed"])
def test_a_preparation_that_cannot_be_differentiated_is_named(memory: Any) -> None:
    """Its backward pass runs apart from those of the inner steps."""
    problem = BilevelProblem(
        lambda x, y, batch: y @ y,
        lambda x, y, prepared: (prepared - y).square().sum(),
        lambda x: x.new_zeros(4),
        prepare=lambda x, batch: x.tanh().mul_(2.0),  # tanh needs its own value
    )
    with pytest.raises(BilevelError, match="the derivative of prepare failed with RuntimeError.*inplace"):
        hypergradient(problem, noise(4), None, ITD(inner=STEPS, memory=memory))
