"""What inner steps compute from ``x`` alone is made and gone back through once, against loops over ``torch.autograd.grad``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
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
    Chunked,
    Estimator,
    Exact,
    GradientDescent,
    HeavyBall,
    InnerSolver,
    Nesterov,
    NormalCG,
    Sampled,
    StocBiONeumann,
    certify,
    hypergradient,
    quadratic,
    solve_inner,
)
from metalearn.errors import MetalearnError
from metalearn.inner import MEMORY_MODES
from tests.bilevel import test_weight_norm as weight_norm
from tests.bilevel.made import noise, relative

B, STEP, STEPS, MOMENTUM = 3, 0.1, 5, 0.4
TRAIN, VAL = ((noise(B, n, 6, seed=n), noise(B, n, seed=n + 1)) for n in (8, 9))
STARTS = 0.1 * noise(B, 4, seed=5)

Loss = Callable[[Any, Tensor, Any], Tensor]
Prepare = Callable[[Any, Any], Any]


class Counted(torch.autograd.Function):
    """The identity, which counts its passes."""

    forwards = backwards = 0

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        Counted.forwards += 1
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:  # type: ignore[override]
        Counted.backwards += 1
        return cotangent


def split(x: Tensor) -> tuple[Tensor, Tensor]:
    """A body ``[6, 4]`` and log penalties ``[4]`` in one vector."""
    return x[:24].reshape(6, 4), x[24:]


def squares(features: Tensor, y: Tensor, targets: Tensor) -> Tensor:
    return (features @ y - targets).square().mean() + (features @ y).cos().mean() / 4


def encode(x: Tensor, batch: Any) -> Any:
    return torch.tanh(batch[0] @ split(x)[0]), batch[1]


def features(x: Tensor, y: Tensor, prepared: Any) -> Tensor:
    """Features, and a penalty that is taken from ``x`` itself."""
    return squares(prepared[0], y, prepared[1]) + (split(x)[1].exp() * y.square()).sum() / 8


def encode_twice(x: Tensor, batch: Any) -> Any:
    """Features of two depths, a view of ``x``, and what does not depend on ``x``."""
    body, penalty = split(x)
    first = torch.tanh(batch[0] @ body)
    return {"first": first, "second": [torch.tanh(first * penalty), body], "targets": batch[1]}


def depths(x: Tensor, y: Tensor, prepared: Any) -> Tensor:
    second, body = prepared["second"]
    tied = (prepared["first"].mT @ (second @ y)).square().mean() / 4 + (body.mT @ (body @ y)).cos().mean()
    return squares(second, y, prepared["targets"]) + tied + y.square().sum() / 8


def outer(x: Tensor, y: Tensor, batch: Any) -> Tensor:
    return squares(torch.tanh(batch[0] @ split(x)[0]), y, batch[1])


WORKS: dict[str, tuple[Loss, Prepare]] = {"features": (features, encode), "depths": (depths, encode_twice)}


def solver(kind: str) -> InnerSolver:
    if kind == "gradient descent":
        return GradientDescent(step_size=STEP, steps=STEPS)
    return (HeavyBall if kind == "heavy ball" else Nesterov)(step_size=STEP, steps=STEPS, momentum=MOMENTUM)


def plain(inner: Loss, x: Tensor, y: Tensor, train: Any, val: Any, kind: str = "", truncate: int = STEPS) -> Tensor:
    """Backpropagation through the steps of one problem."""
    x = x.detach().requires_grad_()
    y = last = y.detach().requires_grad_()
    for step in range(STEPS):
        if step == STEPS - truncate:
            y, last = y.detach().requires_grad_(), last.detach()
        point = y + MOMENTUM * (y - last) if kind == "nesterov" else y
        (slope,) = torch.autograd.grad(inner(x, point, train), point, create_graph=True)
        move = MOMENTUM * (y - last) if kind in ("nesterov", "heavy ball") else 0.0
        y, last = y - STEP * slope + move, y
    (value,) = torch.autograd.grad(outer(x, y, val), x)
    return value


def composed(inner: Loss, prepare: Prepare) -> Loss:
    """The same inner loss without ``prepare``."""
    return lambda x, y, batch: inner(x, y, prepare(x, batch))


def single(inner: Loss, prepare: Prepare | None) -> BilevelProblem:
    train, val = (tuple(part[0] for part in batch) for batch in (TRAIN, VAL))
    return BilevelProblem(outer, inner, lambda _: STARTS[0], prepare=prepare).with_batch(outer=val, inner=train)


def many(inner: Loss, prepare: Prepare | None, **more: Any) -> BilevelProblem:
    problem = BilevelProblem(outer, inner, lambda _: STARTS, batched=B, prepare=prepare, **more)
    return problem.with_batch(outer=VAL, inner=TRAIN)


@pytest.mark.parametrize("work", WORKS)
@pytest.mark.parametrize("kind", ["gradient descent", "heavy ball", "nesterov"])
@pytest.mark.parametrize("truncate", [None, 3])
@pytest.mark.parametrize("memory", MEMORY_MODES)
def test_itd_equals_a_plain_loop(work: str, kind: str, truncate: int | None, memory: Any) -> None:
    """With ``prepare`` and without; of one problem and of several."""
    x, (inner, prepare) = 0.5 * noise(28, seed=2), WORKS[work]
    whole = composed(inner, prepare)
    tasks = [tuple(tuple(part[k] for part in batch) for batch in (TRAIN, VAL)) for k in range(B)]
    loops = [plain(whole, x, STARTS[k], *tasks[k], kind, truncate or STEPS) for k in range(B)]
    estimator = ITD(inner=solver(kind), truncate=truncate, memory=memory)
    for make, expected in ((single, loops[0]), (many, torch.stack(loops).mean(0))):
        for problem in (make(inner, prepare), make(whole, None)):
            assert relative(hypergradient(problem, x, None, estimator).value, expected) < 1e-13


def convex(x: Tensor, y: Tensor, prepared: Any) -> Tensor:
    second, _ = prepared["second"]
    tied = (prepared["first"].mT @ (second @ y)).square().mean() / 4
    return (second @ y - prepared["targets"]).square().mean() + tied + y.square().sum() / 8


INNER = GradientDescent(step_size=STEP, steps=STEPS)
ESTIMATORS: dict[str, Estimator] = {
    "aid": AID(inner=INNER, solver=CG(iterations=3)),
    "normal cg": AID(inner=INNER, solver=NormalCG(iterations=2)),
    "exact": Exact(inner=INNER),
    "stoc_bio": StocBiONeumann(inner=INNER, eta=0.1, Q=3),
    "pzobo": PZOBO(inner=INNER, Q=3),
    "pzobo at once": PZOBO(inner=INNER, Q=3, at_once=2),
    "chunked": Chunked(estimator=ITD(inner=INNER), size=2),
    "chunked aid": Chunked(estimator=AID(inner=INNER, solver=CG(iterations=3)), size=2),
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator_takes_what_is_prepared(name: str) -> None:
    """The same value and counts as without: of one problem, of several with one ``x`` or one each, with one batch, with draws."""
    x, whole = 0.5 * noise(28, seed=2), composed(convex, encode_twice)
    xs = 0.5 * noise(B, 28, seed=2)
    drawn = Sampled(VAL, TRAIN, outer_size=4, inner_size=5, axis=1)
    batch = single(whole, None).stream
    makers: list[tuple[Callable[[Loss, Prepare | None], BilevelProblem], Tensor]] = [
        (single, x), (many, x), (partial(many, shared_x=False), xs),
        (lambda *parts: replace(many(*parts), stream=drawn), x),
        (lambda *parts: replace(many(*parts, shared_x=False, shared_batch=True), stream=batch), xs),
        (lambda *parts: replace(many(*parts, shared_batch=True), stream=batch), x),
    ]  # fmt: skip
    for make, at in makers:
        found = hypergradient(make(convex, encode_twice), at, None, ESTIMATORS[name], step=1, seed=3)
        expected = hypergradient(make(whole, None), at, None, ESTIMATORS[name], step=1, seed=3)
        assert relative(found.value, expected.value) < (1e-12 if "pzobo" not in name else 1e-9)
        assert found.diagnostics.counts == expected.diagnostics.counts


def test_preparations_and_their_backward_passes_are_few() -> None:
    """One of each for a batch that all steps see; one a step where each has its own."""

    def prepare(x: Tensor, batch: Any) -> Any:
        prepared = encode(x, batch)
        return Counted.apply(prepared[0]), prepared[1]

    x, problem = 0.5 * noise(28, seed=2), single(features, prepare)
    train, val = problem.stream.inner, problem.stream.outer  # type: ignore[union-attr]
    drawn = replace(problem, stream=Sampled(val, train, inner_size=5))
    for at, estimator, passes in (
        (problem, ITD(inner=INNER), (1, 1)),
        (problem, ITD(inner=INNER, truncate=2), (2, 1)),  # apart for the steps without a graph
        (problem, ITD(inner=INNER, memory="remat"), (1, 1)),
        (problem, ITD(inner=INNER, memory="mixed"), (1, 1)),
        (problem, AID(inner=INNER, solver=CG(iterations=3)), (2, 1)),  # for the steps, and for the products
        (problem, PZOBO(inner=INNER, Q=2), (3, 0)),  # one for each run
        (drawn, ITD(inner=INNER), (STEPS, STEPS)),
    ):
        Counted.forwards = Counted.backwards = 0
        hypergradient(at, x, None, estimator)
        assert (Counted.forwards, Counted.backwards) == passes, estimator
        Counted.forwards = Counted.backwards = 0


def test_the_inner_solution_as_a_function_is_prepared() -> None:
    """By ``x``, by a batch that requires gradients, and under ``vmap``."""
    x, whole = 0.5 * noise(28, seed=2).requires_grad_(), composed(features, encode)
    inner = GradientDescent(step_size=0.3, tolerance=1e-11)

    def solve(loss: Loss, prepare: Prepare | None, x: Tensor, inputs: Tensor) -> Tensor:
        problem = single(loss, prepare)
        batch = (inputs, problem.stream.inner[1])  # type: ignore[union-attr]
        return solve_inner(problem.with_batch(None, batch), x, inner=inner).sin().sum()

    inputs = TRAIN[0][0].clone().requires_grad_()
    for call in (torch.func.grad, lambda f, argnums: torch.func.vmap(torch.func.grad(f, argnums), in_dims=(0, None))):
        at = x.detach() if call is torch.func.grad else torch.stack([x.detach(), -x.detach()])
        found, expected = (
            call(partial(solve, *parts), argnums=(0, 1))(at, inputs.detach())
            for parts in ((features, encode), (whole, None))
        )
        for value, other in zip(found, expected, strict=True):
            assert relative(value, other) < 1e-10


def test_certificates_hold_of_what_is_prepared() -> None:
    q = quadratic(5, 3, 6.0, seed=2)

    def inner(x: Tensor, y: Tensor, pushed: Tensor) -> Tensor:
        return y @ q.A @ y / 2 - y @ pushed

    problem = replace(q.problem, inner_loss=inner, prepare=lambda x, _: q.C @ x + q.d)
    x = noise(3)
    estimator = AID(inner=GradientDescent(step_size=1.0, steps=4), solver=CG(iterations=2))
    found = hypergradient(problem, x, None, estimator)
    error = float((found.value - q.hypergradient(x)).norm())
    bounds = certify(problem, x, found)
    assert float(bounds.lower) <= error <= float(bounds.upper) <= 3 * error


def test_what_is_prepared_may_be_differentiable_once() -> None:
    """torch's fused weight normalisation is wrong in its second derivative alone, which is not taken of it."""
    gain = 1 + noise(6, 1, seed=4).abs()

    def prepare(normalise: Callable[[Tensor, Tensor], Tensor], x: Tensor, batch: Any) -> Any:
        return torch.tanh(batch[0] @ normalise(split(x)[0], gain)), batch[1]

    x = 0.5 * noise(28, seed=2)
    for estimator in (ITD(inner=INNER), ESTIMATORS["aid"]):
        found, expected = (
            hypergradient(single(features, partial(prepare, normalise)), x, None, estimator).value
            for normalise in (weight_norm.fused, weight_norm.plain)
        )
        assert relative(found, expected) < 1e-12


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (
            lambda: single(features, 3),
            "prepare is 3, but it must be a function; write a function of x and an inner batch",
        ),  # type: ignore[arg-type]
        (
            lambda: single(features, lambda x, batch: batch.sum()),
            r"prepare failed with AttributeError: .*It got x \[28\]",
        ),
        (
            lambda: many(features, lambda x, batch: (*encode(x, batch), "text")),
            "prepare returns a str with batched=3, but",
        ),
        (
            lambda: single(lambda x, y, prepared: prepared[0] @ y @ y, encode),
            r"inner_loss failed with .*, prepared \[8, 4\] float64, \[8\] float64; check",
        ),
        (
            lambda: many(features, encode).with_batch(VAL, (noise(2, 8, 6), noise(2, 8))),
            "the batch of prepare has a tensor",
        ),
    ],
)
def test_what_is_wrong_is_one_line(problem: Callable[[], BilevelProblem], message: str) -> None:
    with pytest.raises(MetalearnError, match=message) as caught:
        hypergradient(problem(), 0.5 * noise(28, seed=2), None, ITD(inner=INNER))
    assert "\n" not in str(caught.value)
