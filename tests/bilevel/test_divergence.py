"""Runs that diverge, and what is not finite: by every estimator and algorithm, in one line, with the term and both steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from metalearn.bilevel import (
    AID,
    ITD,
    L1,
    MRBO,
    PZOBO,
    VRBO,
    AccBiOBG,
    BilevelProblem,
    BiO,
    Exact,
    GradientDescent,
    HeavyBall,
    Nesterov,
    ProximalBiO,
    StocBiONeumann,
    hypergradient,
    run,
)
from metalearn.bilevel.algorithms.base import accumulate_growth
from metalearn.errors import ConfigError, DivergenceError
from tests.bilevel.made import DOUBLE
from tests.bilevel.test_errors import ALL, STEPS, UNKNOWN, Q, X, Y, bent, saying


def wild(kind: Any, steps: int = 30) -> Any:
    """Outside the stable range of ``L = 1``, where the largest step sizes are 2, 3 and 1.5."""
    if kind is GradientDescent:
        return GradientDescent(step_size=2.5, steps=steps)
    return kind(step_size=3.5 if kind is HeavyBall else 2.5, momentum=0.5, steps=steps)


MAKERS: dict[str, Callable[[Any], Any]] = {
    "AID": lambda inner: AID(inner=inner),
    "ITD": lambda inner: ITD(inner=inner),
    "remat": lambda inner: ITD(inner=inner, memory="remat", truncate=3),
    "Exact": lambda inner: Exact(inner=inner),
    "stocBiO": lambda inner: StocBiONeumann(inner=inner, eta=0.5, Q=2),
    "PZOBO": lambda inner: PZOBO(inner=inner),
}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("kind", [GradientDescent, HeavyBall, Nesterov])
def test_an_inner_run_that_diverges_by_every_estimator(name: str, kind: Any) -> None:
    """With L unknown: the step and both numbers, which are those of a plain loop."""
    message = saying(
        DivergenceError,
        r"\|grad_y g\| went from .* to .* by inner step 29 of outer step 4, but it must shrink .*lower step_size=\d",
        lambda: hypergradient(UNKNOWN, X, Y, MAKERS[name](wild(kind)), step=4),
    )
    y = last = Y
    for step in range(30):
        z = y + 0.5 * (y - last) if kind is Nesterov else y
        slope = Q.A @ z - Q.C @ X - Q.d
        if step in (0, 29):
            assert f"{float(slope.norm()):.3g}" in message
        move = 0.5 * (y - last) if kind is HeavyBall else 0
        y, last = z - wild(kind).step_size * slope + move, y


def test_itd_needs_no_convexity_but_tells_of_growth() -> None:
    """Down a slope of curvature -0.4 a few steps are differentiated exactly; many are an error that says how far they went."""
    inner = GradientDescent(step_size=0.5, steps=20)
    found = hypergradient(bent(-0.4), X, None, ITD(inner=inner)).value
    shrunk = torch.tensor([1 - 0.5**20, (1.2**20 - 1) / 0.4, 1 - 0.5**20], dtype=DOUBLE)
    torch.testing.assert_close(found, shrunk)
    saying(
        DivergenceError, r"went from 2.68 to 1.38e\+04 by inner step 59 of outer step 0",
        lambda: hypergradient(bent(-0.4), X, None, ITD(inner=dataclasses.replace(inner, steps=60))),
    )  # fmt: skip


@pytest.mark.parametrize("name", [*MAKERS, "proximal", "acc_bio_bg", "vrbo"])
def test_growth_over_warm_started_runs(name: str) -> None:
    """Five steps that are a little too large grow too little in one outer step, and too much in some; without a warm start they
    do not add up."""
    inner = GradientDescent(step_size=2.5, steps=5)
    if name == "vrbo":
        algorithm: Any = VRBO(estimator=Exact(), anchor=Exact(), step_size=0.01, inner_step_size=2.5, inner_steps=5)
    elif name == "proximal":
        algorithm = ProximalBiO(estimator=AID(inner=inner), prox=L1(0.1), step_size=0.01)
    elif name == "acc_bio_bg":
        algorithm = AccBiOBG(estimator=AID(inner=inner), step_size=0.01, mu_x=0.1)
    else:
        algorithm = BiO(estimator=MAKERS[name](inner), step_size=0.01)
    saying(
        DivergenceError, r"\|grad_y g\| has grown by a factor of .*e\+0[67] within the inner steps up to outer step \d+, but",
        lambda: run(bent(1.0), algorithm, X, 30, y=Y[:3]),
    )  # fmt: skip
    if isinstance(algorithm, BiO):
        run(bent(1.0), dataclasses.replace(algorithm, warm_start=False), X, 30)
        tame = BiO(estimator=MAKERS[name](GradientDescent(step_size=0.5, steps=5)), step_size=0.01)
        assert float(run(bent(1.0), tame, X, 30).state["growth"]) < 1


class Until:
    """Zeros, and what is not a number from an outer step on, in the batches of some terms."""

    def __init__(self, terms: tuple[str, ...], step: int = 3, draws: int = 1) -> None:
        self.terms, self.first = terms, step * draws

    def __call__(self, draw: Any) -> Tensor:
        bad = draw.term in self.terms and draw.step >= self.first
        return torch.full((), float("nan") if bad else 0.0, dtype=DOUBLE)

    def samples(self, draw: Any) -> int:
        return 1


POINT = StocBiONeumann(eta=0.5, Q=2)
RUNS: dict[str, Any] = {
    **{name: BiO(estimator=make(STEPS), step_size=0.01) for name, make in MAKERS.items()},
    "mrbo": MRBO(estimator=POINT, step_size=0.01, inner_step_size=0.2),
    "vrbo": VRBO(estimator=POINT, anchor=POINT, step_size=0.01, inner_step_size=0.2, inner_steps=2),
}


@pytest.mark.parametrize("name", RUNS)
def test_nan_data_are_located_in_every_run(name: str) -> None:
    """The outer step and the term, by the batches of which term are bad."""

    def outer(x: Tensor, y: Tensor, batch: Tensor) -> Tensor:
        return Q.outer_loss(x, y, None) * (1 + batch)

    def inner(x: Tensor, y: Tensor, batch: Tensor) -> Tensor:
        return Q.inner_loss(x, y, None) * (1 + batch)

    def stepped(*terms: str) -> Callable[[], Any]:
        stream = Until(terms, 3, 4 if name == "vrbo" else 1)
        problem = BilevelProblem(outer, inner, UNKNOWN.init_inner, stream=stream)
        return lambda: run(problem, RUNS[name], X, 6)

    saying(DivergenceError, "outer_loss has an entry nan at outer step 3, but it must be finite", stepped("outer"))
    of_inner = "grad_y g (is not finite at inner step 0 of|has an entry nan at) outer step 3"
    saying(DivergenceError, of_inner, stepped("inner", "hessian", "jacobian"))
    if name in ("AID", "Exact", "stocBiO", "mrbo", "vrbo"):
        saying(DivergenceError, "grad_y g has an entry nan at outer step 3", stepped("hessian"))
    if name in ("AID", "stocBiO", "mrbo", "vrbo"):
        saying(DivergenceError, "J v has an entry nan at outer step 3", stepped("jacobian"))
    if name in ("mrbo", "vrbo"):
        saying(DivergenceError, "grad_y g has an entry nan at outer step 3", stepped("inner"))


@pytest.mark.parametrize("name", RUNS)
def test_nan_of_one_gradient_alone_is_located(name: str) -> None:
    """Losses that are finite and whose gradient by one variable is not."""

    def kink(z: Tensor) -> Tensor:
        return (z - z.detach()).abs().sqrt().sum()

    def stepped(**losses: Any) -> Callable[[], Any]:
        return lambda: run(dataclasses.replace(UNKNOWN, **losses), RUNS[name], X, 2)

    f, g = UNKNOWN.outer_loss, UNKNOWN.inner_loss
    saying(
        DivergenceError, "grad_y f has an entry nan at outer step 0",
        stepped(outer_loss=lambda x, y, _: f(x, y, _) + kink(y)),
    )  # fmt: skip
    saying(
        DivergenceError, "grad_x f has an entry nan at outer step 0",
        stepped(outer_loss=lambda x, y, _: f(x, y, _) + kink(x)),
    )  # fmt: skip
    saying(
        DivergenceError, "grad_y g (is not finite at inner step 0 of|has an entry nan at) outer step 0",
        stepped(inner_loss=lambda x, y, _: g(x, y, _) + kink(y)),
    )  # fmt: skip


def test_a_state_of_another_algorithm() -> None:
    states = {name: run(UNKNOWN, RUNS[name], X, 1).state for name in ("AID", "vrbo")}
    saying(
        ConfigError, "state is of another algorithm than MRBO: u, x_before, y_before is in one of them alone; go on with",
        lambda: run(UNKNOWN, RUNS["mrbo"], state=states["AID"], steps=1),
    )  # fmt: skip
    saying(
        ConfigError, "state is of another algorithm than BiO: u is in one of them alone",
        lambda: run(UNKNOWN, RUNS["AID"], state=states["vrbo"], steps=1),
    )  # fmt: skip


@pytest.mark.parametrize("estimator", ALL, ids=lambda each: type(each).__name__)
def test_nan_is_located(estimator: Any) -> None:
    def solved(**changes: Any) -> Callable[[], Any]:
        return lambda: hypergradient(dataclasses.replace(UNKNOWN, **changes), X, Y, estimator, step=7)

    saying(
        DivergenceError, "outer_loss has an entry nan at outer step 7, but it must be finite; lower the step sizes",
        solved(outer_loss=lambda x, y, _: y.sum() * float("nan")),
    )  # fmt: skip
    saying(
        DivergenceError, "grad_y f has an entry (inf|nan) at outer step 7",
        solved(outer_loss=lambda x, y, _: (0 * y).sqrt().sum() + x.sum()),
    )  # fmt: skip

    calls = []

    def third(x: Tensor, y: Tensor, _: Any) -> Tensor:
        calls.append(1)
        return Q.inner_loss(x, y, None) * (float("nan") if (y - Y).norm() > 0.5 else 1.0)

    saying(DivergenceError, r"grad_y g is not finite at inner step [12] of outer step 7, but", solved(inner_loss=third))


def test_nan_on_the_way_to_a_tolerance_is_located() -> None:
    def inner(x: Tensor, y: Tensor, _: Any) -> Tensor:
        return Q.inner_loss(x, y, None) * (float("nan") if (y - Y).norm() > 0.5 else 1.0)

    problem = dataclasses.replace(UNKNOWN, inner_loss=inner)
    estimator = AID(inner=GradientDescent(step_size=0.5, tolerance=1e-6))
    saying(
        DivergenceError, "grad_y g is not finite at inner step [12]", lambda: hypergradient(problem, X, Y, estimator)
    )


def test_a_start_at_the_solution_is_no_growth() -> None:
    """From a gradient of 1e-17 to one of 1e-13 is rounding."""
    solved = Q.solution(X)
    found = hypergradient(Q.problem, X, solved, AID(inner=GradientDescent(step_size=1.0, steps=50)))
    assert (found.inner - solved).norm() < 1e-12


def test_nan_of_a_second_derivative_is_located() -> None:
    def inner(x: Tensor, y: Tensor, _: Any) -> Tensor:
        return y @ y / 2 + (x.abs() ** 1.5).sum() * 0 + ((y - Y).abs() ** 1.5).sum() - x @ y[:3]

    problem = dataclasses.replace(UNKNOWN, inner_loss=inner)
    saying(
        DivergenceError, "grad_yy g has an entry (nan|inf) at outer step 0",
        lambda: hypergradient(problem, X, Y, StocBiONeumann(eta=0.5, Q=1)),
    )  # fmt: skip
    saying(DivergenceError, "grad_yy g has an entry", lambda: hypergradient(problem, X, Y, Exact()))
    saying(DivergenceError, "grad_yy g has an entry (nan|inf)", lambda: hypergradient(problem, X, Y, AID()))


def test_growth_counts_from_where_it_last_shrank() -> None:
    """A run that shrank a millionfold leaves no room for one that then grows."""
    before = accumulate_growth({"growth": torch.tensor(1e-6), "step": 1}, torch.tensor(500.0))
    assert before is not None
    assert float(before) == 500.0
    after = accumulate_growth({"growth": before, "step": 2}, torch.tensor(1500.0))
    assert after is not None
    assert float(after) == 750_000.0
    saying(
        DivergenceError,
        r"has grown by a factor of 1.5e\+06 within the inner steps up to outer step 3",
        lambda: accumulate_growth({"growth": after, "step": 3}, torch.tensor(2.0)),
    )
