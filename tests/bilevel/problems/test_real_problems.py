"""Hyper-cleaning and regularisation tuning against plain autograd loops, in float64."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.bilevel import (
    AID,
    CG,
    ITD,
    MRBO,
    VRBO,
    BiO,
    Exact,
    GradientDescent,
    SparseRows,
    StocBiONeumann,
    cleaning_problem,
    detection_auroc,
    hypergradient,
    linear_logits,
    regularization_problem,
    run,
)
from metalearn.bilevel.problems.drawn import Drawn
from metalearn.errors import BilevelError, ConfigError, ShapeError

Part = tuple[Tensor, Tensor, Tensor]


def part(seed: int, count: int = 12, features: int = 5, classes: int = 3) -> Part:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, features, generator=generator, dtype=torch.float64)
    return torch.arange(count), x, torch.randint(0, classes, (count,), generator=generator)


def sparse(of: Part) -> Part:
    return of[0], of[1].relu().to_sparse_coo(), of[2]


def dense(of: Part) -> Part:
    return of[0], of[1].relu(), of[2]


def weighed(x: Tensor, w: Tensor, of: Part) -> Tensor:
    """The inner loss of hyper-cleaning, written example by example."""
    total = torch.zeros((), dtype=torch.float64)
    for weight, row, label in zip(x, of[1], of[2], strict=True):
        logits = w[:, :-1] @ row + w[:, -1]
        total = total + (torch.logsumexp(logits, 0) - logits[label]) / (1 + torch.exp(-weight))
    return total / len(of[2]) + 0.001 * (w**2).sum()


def penalised(x: Tensor, w: Tensor, of: Part) -> Tensor:
    """The inner loss of regularisation tuning, written class by class."""
    loss = F.cross_entropy(of[1] @ w, of[2])
    return loss + 0.5 * torch.stack([(x.exp() * column**2).sum() for column in w.T]).mean()


def unrolled(inner: object, x: Tensor, w: Tensor, train: Part, step: float, steps: int, outer: object) -> Tensor:
    x = x.clone().requires_grad_()
    w = w.clone().requires_grad_()
    for _ in range(steps):
        (found,) = torch.autograd.grad(inner(x, w, train), w, create_graph=True)  # type: ignore[operator]
        w = w - step * found
    (value,) = torch.autograd.grad(outer(w), x)  # type: ignore[operator]
    return value


def test_cleaning_against_a_plain_loop() -> None:
    train, val = part(0), part(1)
    problem = cleaning_problem(train, val, classes=3)
    x = torch.linspace(-1, 1, 12, dtype=torch.float64)
    found = hypergradient(problem, x, None, ITD(inner=GradientDescent(step_size=0.3, steps=7)))
    expected = unrolled(
        weighed, x, torch.zeros(3, 6, dtype=torch.float64), train, 0.3, 7,
        lambda w: F.cross_entropy(linear_logits(w, val[1]), val[2])
    )  # fmt: skip
    torch.testing.assert_close(found.value, expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("as_sparse", [True, False])
def test_regularization_against_a_plain_loop(as_sparse: bool) -> None:
    kind = sparse if as_sparse else dense
    train, val = kind(part(0)), kind(part(1))
    problem = regularization_problem(train, val, classes=3)
    x = torch.linspace(-3, -1, 5, dtype=torch.float64)
    found = hypergradient(problem, x, None, ITD(inner=GradientDescent(step_size=0.5, steps=7)))
    expected = unrolled(
        penalised, x, torch.zeros(5, 3, dtype=torch.float64), dense(part(0)), 0.5, 7,
        lambda w: F.cross_entropy(dense(part(1))[1] @ w, val[2]),
    )  # fmt: skip
    torch.testing.assert_close(found.value, expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("kind", ["cleaning", "regularization"])
def test_implicit_hypergradients_against_finite_differences(kind: str) -> None:
    train, val = part(0), part(1)
    if kind == "cleaning":
        problem, x = cleaning_problem(train, val, classes=3, l2=0.05), torch.linspace(-1, 1, 12, dtype=torch.float64)
    else:
        problem = regularization_problem(sparse(train), sparse(val), classes=3)
        x = torch.linspace(-2, 0, 5, dtype=torch.float64)
    inner = GradientDescent(step_size=0.5, tolerance=1e-12, max_steps=20_000)
    found = hypergradient(problem, x, None, AID(inner=inner, solver=CG(tolerance=1e-11)))
    exact = hypergradient(problem, x, None, Exact(inner=inner))
    torch.testing.assert_close(found.value, exact.value, rtol=1e-8, atol=1e-10)
    for place in (0, 4):
        losses = []
        for sign in (1, -1):
            moved = x.clone()
            moved[place] += sign * 1e-5
            losses.append(hypergradient(problem, moved, found.inner, AID(inner=inner)).diagnostics.loss)
        slope = (losses[0] - losses[1]) / 2e-5
        torch.testing.assert_close(found.value[place], slope, rtol=1e-5, atol=1e-9)


def test_sparse_products_differentiate_twice() -> None:
    rows = SparseRows(part(0)[1].relu().to_sparse_coo())
    w = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    assert rows.shape == (12, 5)
    assert torch.autograd.gradcheck(lambda w: (rows @ w).square(), w)
    assert torch.autograd.gradgradcheck(lambda w: (rows @ w).square(), w)


def test_mini_batches_are_unbiased_and_repeat() -> None:
    """Full sizes give the deterministic hypergradient; small ones differ by seed alone, and average to it."""
    train, val = part(0), part(1)
    x = torch.zeros(12, dtype=torch.float64)
    w = torch.randn(3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    estimator = StocBiONeumann(eta=0.1, Q=1)
    whole = hypergradient(cleaning_problem(train, val, classes=3), x, w, estimator).value
    full = hypergradient(cleaning_problem(train, val, classes=3, inner_size=12), x, w, estimator).value
    torch.testing.assert_close(whole, full)
    problem = cleaning_problem(train, val, classes=3, inner_size=4, outer_size=4)
    one, again = (hypergradient(problem, x, w, estimator, step=3).value for _ in range(2))
    assert torch.equal(one, again)
    assert not torch.equal(one, hypergradient(problem, x, w, estimator, step=4).value)
    many = torch.stack([hypergradient(problem, x, w, estimator, step=step).value for step in range(600)])
    error = (many.var(0).sum() / len(many)).sqrt()  # of the mean, by its own spread
    assert float((many.mean(0) - whole).norm()) < 2 * float(error) < 0.3 * float(whole.norm())


def batches(sizes: dict[str, int], size: int = 4) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    rng = np.random.default_rng(0)
    found = {}
    for term, count in sizes.items():
        index, x, y = part(1 if term == "outer" else 0)
        rows = torch.from_numpy(np.stack([rng.permutation(12)[:size] for _ in range(count)]))
        found[term] = index[rows], x[rows], y[rows]
    return found


def test_drawn_batches_serve_every_stochastic_algorithm() -> None:
    point = StocBiONeumann(eta=0.1, Q=2)
    algorithms = [
        BiO(estimator=StocBiONeumann(inner=GradientDescent(step_size=0.1, steps=3), eta=0.1, Q=2), step_size=1.0),
        MRBO(estimator=point, step_size=1.0, inner_step_size=0.1),
        VRBO(estimator=point, anchor=point, step_size=1.0, inner_step_size=0.1, period=1, inner_steps=2),
    ]
    sizes = {"inner": 4, "outer": 4, "hessian": 8, "jacobian": 4}
    problem = cleaning_problem(features=5, classes=3)
    for algorithm in algorithms:
        state = algorithm.init(problem, torch.zeros(12, dtype=torch.float64), torch.zeros(3, 6, dtype=torch.float64))
        for _ in range(2):
            state = algorithm.step(dataclasses.replace(problem, stream=Drawn(batches(sizes))), state)
        assert bool(state["x"].any())
    few = dataclasses.replace(problem, stream=Drawn(batches({**sizes, "inner": 2})))
    start = algorithms[0].init(few, torch.zeros(12, dtype=torch.float64), torch.zeros(3, 6, dtype=torch.float64))
    with pytest.raises(BilevelError, match=r"draws 3 batches of the term 'inner' in a step, but the data have drawn 2"):
        algorithms[0].step(few, start)


def test_a_run_finds_the_wrong_labels() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(80, 4, generator=generator, dtype=torch.float64)
    y = (x[:, 0] > 0).long()
    wrong = torch.zeros(40, dtype=torch.bool)
    wrong[:12] = True
    train = (torch.arange(40), x[:40], torch.where(wrong, 1 - y[:40], y[:40]))
    problem = cleaning_problem(train, (torch.arange(40), x[40:], y[40:]), classes=2)
    estimator = AID(inner=GradientDescent(step_size=0.5, steps=10), solver=CG(iterations=5))
    found = run(problem, BiO(estimator=estimator, step_size=50.0), torch.zeros(40, dtype=torch.float64), steps=20)
    assert detection_auroc(found.x, wrong) > 0.9


def test_auroc_by_its_definition() -> None:
    x = torch.tensor([0.3, -1.0, 0.3, 2.0, -1.0, 0.0])
    wrong = torch.tensor([True, True, False, False, False, True])
    pairs = [(float(a < b) + 0.5 * float(a == b)) for a in x[wrong] for b in x[~wrong]]
    assert detection_auroc(x, wrong) == pytest.approx(sum(pairs) / len(pairs))
    assert np.isnan(detection_auroc(x, torch.zeros(6, dtype=torch.bool)))
    far = torch.tensor([-60.0, -50.0, 60.0, 50.0])  # which a sigmoid would make alike
    assert detection_auroc(far, torch.tensor([True, False, False, True])) == pytest.approx(0.75)
    assert detection_auroc(torch.zeros(5), torch.arange(5) < 2) == 0.5


def test_errors_of_the_problems() -> None:
    train, val = part(0), part(1)
    with pytest.raises(ConfigError, match="l2 is 0"):
        cleaning_problem(train, val, l2=0.0)
    with pytest.raises(ConfigError, match="classes is 1"):
        cleaning_problem(train, val, classes=1)
    with pytest.raises(ConfigError, match="neither train and val nor features"):
        cleaning_problem(train)
    with pytest.raises(ShapeError, match=r"labels from 0 to 2, but classes=2"):
        cleaning_problem(train, val, classes=2)
    with pytest.raises(ShapeError, match="train has 5 features and val 4"):
        cleaning_problem(train, part(1, features=4))
    with pytest.raises(ShapeError, match=r"x \[12\]"):
        cleaning_problem((train[0], train[1][:, 0], train[2]), val)
    with pytest.raises(ConfigError, match="neither train and val nor features and classes"):
        regularization_problem(features=3)
    with pytest.raises(ShapeError, match="train has 5 features and val 4"):
        regularization_problem(sparse(train), sparse(part(1, features=4)))
    with pytest.raises(ShapeError, match=r"y \[11\]"):
        regularization_problem((train[0], train[1], train[2][:11]), val)
    with pytest.raises(ShapeError, match=r"labels from 0 to 2, but classes=2"):
        regularization_problem(train, val, classes=2)
