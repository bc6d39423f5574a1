"""Iterative differentiation goes back once through what all inner steps share, against loops over ``torch.autograd.grad``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from metalearn.bilevel import ITD, BilevelProblem, GradientDescent, HeavyBall, InnerSolver, Nesterov, hypergradient
from tests.bilevel.problems import DOUBLE, noise, relative

B, STEP, STEPS, MOMENTUM = 3, 0.1, 5, 0.4
TRAIN, VAL = ((noise(B, n, 6, seed=n), noise(B, n, seed=n + 1)) for n in (8, 9))
STARTS = 0.1 * noise(B, 4, seed=5)

Loss = Callable[[Any, Tensor, Any], Tensor]


class Counted(torch.autograd.Function):
    """The identity, which counts its backward passes."""

    passes = 0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        Counted.passes += 1
        return cotangent


def split(x: Tensor) -> tuple[Tensor, Tensor]:
    """A body ``[6, 4]`` and log penalties ``[4]`` in one vector."""
    return x[:24].reshape(6, 4), x[24:]


def squares(features: Tensor, y: Tensor, targets: Tensor) -> Tensor:
    return (features @ y - targets).square().mean() + (features @ y).cos().mean() / 4


def features(x: Tensor, y: Tensor, batch: Any) -> Tensor:
    """A penalty that the inner loss takes from ``x`` itself, beside features."""
    body, penalty = split(x)
    return squares(torch.tanh(batch[0] @ body), y, batch[1]) + (penalty.exp() * y.square()).sum() / 8


def tied(x: Tensor, y: Tensor, batch: Any) -> Tensor:
    """Features, and the tensor that they are made of."""
    body = split(x)[0]
    return squares(torch.tanh(batch[0] @ body), body.mT @ (body @ y), batch[1]) + y.square().sum() / 4


def views(x: Tensor, y: Tensor, batch: Any) -> Tensor:
    """Features of two depths, and products with both sides of them."""
    body, penalty = split(x)
    first = torch.tanh(batch[0] @ body)
    second = torch.tanh(first * penalty)
    return squares(second, y, batch[1]) + (first.mT @ (second @ y)).square().mean() / 4 + y.square().sum() / 8


def no_features(x: Tensor, y: Tensor, batch: Any) -> Tensor:
    return squares(torch.tanh(batch[0] @ split(x)[0] * y), y, batch[1]) + y.square().sum() / 8


def outer(x: Tensor, y: Tensor, batch: Any) -> Tensor:
    return squares(torch.tanh(batch[0] @ split(x)[0]), y, batch[1])


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
        (found,) = torch.autograd.grad(inner(x, point, train), point, create_graph=True)
        move = MOMENTUM * (y - last) if kind in ("nesterov", "heavy ball") else 0.0
        y, last = y - STEP * found + move, y
    (value,) = torch.autograd.grad(outer(x, y, val), x)
    return value


def one(inner: Loss) -> BilevelProblem:
    train, val = (tuple(part[0] for part in batch) for batch in (TRAIN, VAL))
    return BilevelProblem(outer, inner, lambda _: STARTS[0]).with_batch(outer=val, inner=train)


@pytest.mark.parametrize("inner", [features, tied, views, no_features], ids=lambda loss: loss.__name__)
@pytest.mark.parametrize("kind", ["gradient descent", "heavy ball", "nesterov"])
@pytest.mark.parametrize("truncate", [None, 3])
def test_equals_a_plain_loop(inner: Loss, kind: str, truncate: int | None) -> None:
    x = 0.5 * noise(28, seed=2)
    problem = BilevelProblem(outer, inner, lambda _: STARTS, batched=B).with_batch(outer=VAL, inner=TRAIN)
    found = hypergradient(problem, x, None, ITD(inner=solver(kind), truncate=truncate)).value
    tasks = [tuple(tuple(part[k] for part in batch) for batch in (TRAIN, VAL)) for k in range(B)]
    loops = [plain(inner, x, STARTS[k], *tasks[k], kind, truncate or STEPS) for k in range(B)]
    assert relative(found, torch.stack(loops).mean(0)) < 1e-13


@pytest.mark.parametrize("memory", ["store", "remat"])
def test_features_have_one_backward_pass(memory: Any) -> None:
    def inner(x: Tensor, y: Tensor, batch: Any) -> Tensor:
        return squares(Counted.apply(torch.tanh(batch[0] @ split(x)[0])), y, batch[1])

    problem, x = one(inner), 0.5 * noise(28, seed=2)
    expected = plain(inner, x, STARTS[0], problem.stream.inner, problem.stream.outer)  # type: ignore[union-attr]
    Counted.passes = 0
    found = hypergradient(problem, x, None, ITD(inner=solver("gradient descent"), memory=memory))
    assert Counted.passes == (1 if memory == "store" else STEPS)
    assert relative(found.value, expected) < 1e-13
    assert found.diagnostics.counts.as_dict() == {"gc_f": 1, "gc_g": STEPS, "jvp": STEPS, "hvp": STEPS - 1}


def test_features_kept_by_the_loss_count_once() -> None:
    kept: list[Tensor] = []

    def inner(x: Tensor, y: Tensor, batch: Any) -> Tensor:
        if not kept:
            kept.append(torch.tanh(batch[0] @ split(x)[0]))
        return squares(kept[0], y, batch[1])

    def fresh(x: Tensor, y: Tensor, batch: Any) -> Tensor:
        return squares(torch.tanh(batch[0] @ split(x)[0]), y, batch[1])

    problem, x = one(inner), 0.5 * noise(28, seed=2)
    expected = plain(fresh, x, STARTS[0], problem.stream.inner, problem.stream.outer)  # type: ignore[union-attr]
    assert relative(hypergradient(problem, x, None, ITD(inner=solver("gradient descent"))).value, expected) < 1e-13


def test_features_that_differ_by_step_are_not_shared() -> None:
    """By dropout, and by data that a loss draws for itself."""

    def dropped(x: Tensor, y: Tensor, batch: Any) -> Tensor:
        return squares(torch.dropout(torch.tanh(batch[0] @ split(x)[0]), 0.5, True), y, batch[1])

    problem, x = one(dropped), 0.5 * noise(28, seed=2)
    train, val = problem.stream.inner, problem.stream.outer  # type: ignore[union-attr]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        expected = plain(dropped, x, STARTS[0], train, val)
        torch.manual_seed(0)
        found = hypergradient(problem, x, None, ITD(inner=solver("gradient descent")))
    assert relative(found.value, expected) < 1e-13

    def drawing(seed: int) -> Loss:
        generator = torch.Generator().manual_seed(seed)

        def inner(x: Tensor, y: Tensor, _: Any) -> Tensor:
            inputs = torch.randn(8, 6, generator=generator, dtype=DOUBLE)
            return squares(torch.tanh(inputs @ split(x)[0]), y, train[1])

        return inner

    alone = BilevelProblem(lambda x, y, _: outer(x, y, val), drawing(1), lambda _: STARTS[0])
    expected = plain(drawing(1), x, STARTS[0], None, val)
    assert relative(hypergradient(alone, x, None, ITD(inner=solver("gradient descent"))).value, expected) < 1e-13


def test_features_whose_graph_differs_by_step_are_not_shared() -> None:
    def changing() -> Loss:
        calls: list[None] = []

        def inner(x: Tensor, y: Tensor, batch: Any) -> Tensor:
            calls.append(None)
            return squares((torch.tanh, torch.sin)[len(calls) % 2](batch[0] @ split(x)[0]), y, batch[1])

        return inner

    problem, x = one(changing()), 0.5 * noise(28, seed=2)
    expected = plain(changing(), x, STARTS[0], problem.stream.inner, problem.stream.outer)  # type: ignore[union-attr]
    assert relative(hypergradient(problem, x, None, ITD(inner=solver("gradient descent"))).value, expected) < 1e-13
