"""What a user gets wrong is one line: the value, the constraint, the remedy."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from metalearn.bilevel import (
    AID,
    CG,
    ITD,
    L1,
    MRBO,
    PZOBO,
    VRBO,
    AccBiO,
    AccBiOBG,
    BilevelProblem,
    BiO,
    Box,
    Constants,
    Exact,
    FixedPoint,
    GradientDescent,
    GroupL1,
    HeavyBall,
    HeavyBallLinear,
    Nesterov,
    Neumann,
    ProximalBiO,
    Sampled,
    StocBiONeumann,
    acc_bio,
    hypergradient,
    quadratic,
    run,
)
from metalearn.bilevel.solvers.step_sizes import inner_steps
from metalearn.errors import BilevelError, ConfigError, DivergenceError, MetalearnError, ShapeError
from tests.bilevel.made import DOUBLE, noise, without_constants

Q = quadratic(4, 3, 5.0, seed=1)
X, Y = noise(3), noise(4, seed=1)
STEPS = GradientDescent(step_size=0.5, steps=3)
UNKNOWN = without_constants(Q.problem)


def saying(error: type[MetalearnError], pattern: str, function: Callable[[], Any]) -> str:
    with pytest.raises(error, match=pattern) as caught:
        function()
    message = str(caught.value)
    assert "\n" not in message
    return message


def bent(curvature: float) -> BilevelProblem:
    """An inner loss with one eigenvalue of this curvature, the others 1, along the second axis."""

    def inner(x: Tensor, y: Tensor, _: Any) -> Tensor:
        scale = torch.tensor([1.0, curvature, 1.0], dtype=DOUBLE)
        return (scale * y * y).sum() / 2 - x @ y

    return BilevelProblem(lambda x, y, _: y.sum(), inner, torch.zeros_like)


def test_negative_curvature_is_measured() -> None:
    x = noise(3)
    message = saying(
        BilevelError, r"CG met the curvature -\d.* must be strongly convex in y; add l2",
        lambda: hypergradient(bent(-4.0), x, None, AID(solver=CG(iterations=5))),
    )  # fmt: skip
    assert -4.01 < float(message.split("curvature ")[1].split(" ")[0]) < 0
    saying(
        BilevelError, r"curvature -4, but it must be strongly convex in y; add l2",
        lambda: hypergradient(bent(-4.0), x, None, Exact()),
    )  # fmt: skip
    for solver in (FixedPoint(step_size=0.5, iterations=12), Neumann(step_size=0.5, iterations=12)):
        saying(
            BilevelError, rf"{type(solver).__name__} met the curvature -0.4 in inner_loss, but it must be strongly convex",
            partial(hypergradient, bent(-0.4), x, None, AID(solver=solver)),
        )  # fmt: skip
    for number, limit in (({"iterations": 40}, 9e5), ({"iterations": 4000}, 1e8), ({"tolerance": 1e-6}, 1e8)):
        ball = HeavyBallLinear(step_size=0.5, momentum=0.5, **number)  # type: ignore[arg-type]
        message = saying(
            BilevelError,
            r"the residual .* of HeavyBallLinear grew from .* has the curvature -0.4;.* below 2 \(1 \+ .*add l2",
            partial(hypergradient, bent(-0.4), x, None, AID(solver=ball)),
        )
        assert float(message.split("to ")[1].split(",")[0]) < limit  # told before it has run out of digits
    saying(
        BilevelError, r"the Neumann series met the curvature -1 in inner_loss at outer step 0, .* between 0 and 2/eta = 4;",
        lambda: hypergradient(bent(-1.0), x, None, StocBiONeumann(eta=0.5, Q=25)),
    )  # fmt: skip
    saying(  # terms whose squares overflow
        BilevelError, r"the Neumann series met the curvature -1e\+06 in inner_loss",
        lambda: hypergradient(bent(-1e6), x, None, StocBiONeumann(eta=1e3, Q=25)),
    )  # fmt: skip


def test_a_batch_may_be_bent_unless_the_terms_grow() -> None:
    """Of a stochastic problem only growth is an error, and it tells the curvature."""

    class Draws:
        def __call__(self, draw: Any) -> Tensor:
            return torch.zeros(1)

        def samples(self, draw: Any) -> int:
            return 1

    problem = dataclasses.replace(bent(-0.4), stream=Draws())
    hypergradient(problem, noise(3), None, StocBiONeumann(eta=0.5, Q=3))
    saying(
        BilevelError, "curvature -0.4 in inner_loss",
        lambda: hypergradient(problem, noise(3), None, StocBiONeumann(eta=0.5, Q=25)),
    )  # fmt: skip


def test_batched_negative_curvature_is_met_in_any_problem() -> None:
    def inner(x: Tensor, y: Tensor, sign: Tensor) -> Tensor:
        return (1 + sign) * (y * y).sum() / 2 - x @ y

    problem = BilevelProblem(
        lambda x, y, _: y.sum(), inner, lambda x: torch.zeros(2, 3, dtype=DOUBLE), batched=2
    ).with_batch(outer=torch.zeros(2), inner=torch.tensor([0.0, -3.0]))
    saying(
        BilevelError,
        "CG met the curvature -2 ",
        lambda: hypergradient(problem, X, None, AID(solver=CG(iterations=10))),
    )


def test_a_residual_that_grows() -> None:
    """A step size above 2 over an unknown L."""
    for solver in (
        FixedPoint(step_size=2.5, iterations=20), Neumann(step_size=2.5, iterations=20),
        FixedPoint(step_size=2.5, tolerance=1e-6), FixedPoint(step_size=2.5, iterations=5000),
    ):  # fmt: skip
        saying(
            BilevelError, rf"residual .* of {type(solver).__name__} grew from .* has the curvature 1; .*lower the step size",
            partial(hypergradient, bent(0.5), noise(3), None, AID(solver=solver)),
        )  # fmt: skip
    saying(
        DivergenceError, r"\|grad_y g\| went from .* by inner step \d+.*lower step_size=4",
        lambda: hypergradient(bent(1.0), noise(3), Y[:3], AID(inner=GradientDescent(step_size=4.0, tolerance=1e-3))),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("estimator", "pattern"),
    [
        (
            AID(inner=GradientDescent(step_size=2.0, steps=1)),
            r"GradientDescent.step_size is 2, but with L = 1 it must be below 2",
        ),
        (AID(inner=HeavyBall(step_size=3.1, momentum=0.5, steps=1)), r"HeavyBall.step_size is 3.1, .* below 3"),
        (AID(inner=Nesterov(step_size=1.6, momentum=0.5, steps=1)), r"Nesterov.step_size is 1.6, .* below 1.5"),
        (AID(solver=FixedPoint(step_size=2.1, iterations=1)), r"FixedPoint.step_size is 2.1, .* below 2"),
        (
            AID(solver=HeavyBallLinear(step_size=3.1, momentum=0.5, iterations=1)),
            r"HeavyBallLinear.step_size is 3.1, .* below 3",
        ),
        (StocBiONeumann(eta=2.5, Q=1), r"StocBiONeumann.eta is 2.5, .* below 2, .*use 1 \(1/L\)"),
    ],
)
def test_step_sizes_outside_the_stable_range(estimator: Any, pattern: str) -> None:
    saying(ConfigError, pattern, lambda: hypergradient(Q.problem, X, Y, estimator))
    hypergradient(UNKNOWN, X, Y, estimator)


def test_the_stable_range_is_where_the_methods_diverge() -> None:
    """A little inside of it the residual falls, and a little outside it grows, on the curvature L."""
    for kind, momentum in ((GradientDescent, None), (HeavyBall, 0.5), (Nesterov, 0.5)):
        extra = {} if momentum is None else {"momentum": momentum}
        largest = kind(step_size=1.0, steps=1, **extra).largest_step(1.0)  # type: ignore[arg-type]
        for factor, shrinks in ((0.98, True), (1.02, False)):
            solver = kind(step_size=factor * largest, steps=150, **extra)  # type: ignore[arg-type]
            end = solver.solve(lambda y, _: y, torch.ones(1, dtype=DOUBLE)).y
            assert (abs(float(end)) < 1) == shrinks


def test_outer_step_sizes() -> None:
    L_phi = Q.problem.constants.L_phi
    assert L_phi is not None
    algorithms = [
        BiO(estimator=AID(), step_size=2.1 / L_phi),
        AccBiOBG(estimator=AID(), step_size=2.1 / L_phi, mu_x=L_phi / 4),
        ProximalBiO(estimator=AID(), prox=L1(0.1), step_size=2.1 / L_phi),
        AccBiO(estimator=AID(), L_phi=L_phi / 2.1, mu_x=L_phi / 4),
    ]
    for algorithm in algorithms:
        saying(
            ConfigError,
            r"but with L_phi = .* must be below .*use .* \(1/L_phi\)",
            partial(run, Q.problem, algorithm, X),
        )
    saying(
        ConfigError, "MRBO.inner_step_size times the schedule is 2.5, but with L = 1",
        lambda: run(Q.problem, MRBO(estimator=Exact(), step_size=0.1, inner_step_size=2.5), X),
    )  # fmt: skip
    saying(
        ConfigError, "VRBO.inner_step_size is 2.5, but with L = 1",
        lambda: run(Q.problem, VRBO(estimator=Exact(), anchor=Exact(), step_size=0.1, inner_step_size=2.5), X),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("make", "pattern"),
    [
        (lambda: GradientDescent(step_size=0.0, steps=1), "step_size=0.0.*a finite number above 0; use 1/L"),
        (lambda: GradientDescent(step_size=float("inf"), steps=1), "step_size=inf.*a finite number above 0; use 1/L"),
        (lambda: GradientDescent(step_size=0.1, steps=2.5), "steps=2.5.*a whole number"),  # type: ignore[arg-type]
        (lambda: GradientDescent(step_size=0.1, tolerance=0.1, max_steps=0), "max_steps=0.*at least 1; use 10000"),
        (lambda: CG(tolerance=0.1, max_iterations=0), "max_iterations=0.*at least 1; use 1000"),
        (lambda: hypergradient(Q.problem, X, Y, AID), "estimator is <class .*AID'>, .*make one of it"),  # type: ignore[arg-type]
        (lambda: GradientDescent(step_size=0.1), "exactly one of them must be given; drop one"),
        (lambda: GradientDescent(step_size=0.1, steps=1, tolerance=0.1), "exactly one of them must be given; drop one"),
        (lambda: GradientDescent(step_size=0.1, steps=-1), "steps=-1.*at least 0; use 10"),
        (lambda: GradientDescent(step_size=0.1, tolerance=0.0), "tolerance=0.0.*above 0; use 1e-6"),
        (lambda: Nesterov(step_size=0.1, steps=1, momentum=1.0), "momentum is 1.0.*below 1; use 0.9"),
        (lambda: CG(), "exactly one of them must be given"),
        (lambda: CG(iterations=-1), "iterations=-1.*at least 0; use 10"),
        (lambda: CG(tolerance=-1.0), "tolerance=-1.0.*above 0; use 1e-6"),
        (lambda: FixedPoint(step_size=-1.0, iterations=1), "step_size=-1.0.*a finite number above 0; use 1/L"),
        (lambda: HeavyBallLinear(step_size=1.0, iterations=1, momentum=2.0), "momentum is 2.0"),
        (lambda: ITD(inner=GradientDescent(step_size=0.1, steps=0)), "steps=0.*inner steps, at least 1"),
        (lambda: ITD(), r"ITD\(inner=None\).*given number of inner steps, at least 1; use inner=GradientDescent"),
        (lambda: ITD(inner=GradientDescent(step_size=0.1, tolerance=0.1)), "given number of inner steps"),
        (lambda: ITD(inner=STEPS, truncate=4), "truncate=4.*from 1 to the 3 inner steps; use None"),
        (lambda: ITD(inner=STEPS, memory="disk"), "memory='disk'.*one of store, remat, mixed; use 'store'"),  # type: ignore[arg-type]
        (lambda: AID(tolerance=0.0), "tolerance=0.0.*above 0"),
        (lambda: AID(tolerance=0.1), "an inner solver is needed to reach it"),
        (lambda: PZOBO(), "compares runs of an inner solver; use inner="),
        (lambda: PZOBO(inner=STEPS, mu=0.0), "mu=0.0.*above 0; use 0.01"),
        (lambda: PZOBO(inner=STEPS, at_once=0), "at_once=0.*at least 1; use 1"),
        (lambda: PZOBO(inner=STEPS, Q=0), "Q=0.*at least 1; use 10"),
        (lambda: StocBiONeumann(eta=0.0, Q=1), "eta=0.0.*above 0; use 1/L"),
        (lambda: StocBiONeumann(eta=0.1, Q=0), "Q=0.*at least 1; use 3"),
        (lambda: StocBiONeumann(eta=0.1, Q=1, batch=0), "batch=0.*at least 1"),
        (lambda: BiO(estimator=AID(), step_size=0.0), "step_size=0.0.*above 0"),
        (lambda: AccBiO(estimator=AID(), L_phi=1.0, mu_x=2.0), "mu_x=2.* above L_phi = 1.*lower it"),
        (
            lambda: ProximalBiO(estimator=AID(), prox=L1(0.1), step_size=1.0, momentum=1.0),
            "momentum=1.0.*use 0.9 or None",
        ),
        (
            lambda: MRBO(estimator=AID(inner=STEPS), step_size=0.1, inner_step_size=0.1),
            "it moves y itself; .*inner=None",
        ),
        (
            lambda: VRBO(estimator=AID(), anchor=AID(inner=STEPS), step_size=0.1, inner_step_size=0.1),
            r"VRBO\(anchor=AID\(inner=...\)\), but it moves y itself",
        ),
        (lambda: L1(-1.0), "weight is -1.0.*at least 0"),
        (lambda: GroupL1(-1.0), "weight is -1.0.*at least 0"),
        (lambda: Box(1.0, 0.0), "low must not be above high; swap them"),
        (lambda: Constants(mu=0.0), "constants.mu is 0.0.*above 0; leave it None"),
        (lambda: Constants(rho_H=-1.0), "constants.rho_H is -1.0.*at least 0"),
        (lambda: Constants(mu=2.0, L=1.0), "constants.mu is 2, above constants.L = 1; swap them"),
        (lambda: Sampled(X, X, inner_size=0), "inner_size is 0.*at least 1; use None"),
        (lambda: dataclasses.replace(Q.problem, batched=0), "batched is 0.*at least 1; use None"),
        (lambda: run(Q.problem, BiO(estimator=AID(), step_size=0.01)), "exactly one must be given; drop one"),
        (lambda: run(Q.problem, BiO(estimator=AID(), step_size=0.01), X, -1), "steps=-1.*at least 0"),
        (lambda: acc_bio(Constants(mu=1.0, L=2.0)), "acc_bio needs constants.mu_x"),
        (lambda: inner_steps(1.0, 10.0), "contraction=1.0.*below 1"),
        (lambda: hypergradient(Q.problem, X, Y, Exact(largest=3)), "y has 4 entries.*use AID"),
    ],
)
def test_arguments(make: Callable[[], Any], pattern: str) -> None:
    saying(ConfigError, pattern, make)


def test_a_tolerance_that_was_not_reached() -> None:
    slow = GradientDescent(step_size=0.1, tolerance=1e-9, max_steps=5)
    saying(
        BilevelError, r"GradientDescent reached \|grad_y g\| = .* in 5 steps of outer step 0, but .*raise max_steps",
        lambda: hypergradient(Q.problem, X, Y, AID(inner=slow)),
    )  # fmt: skip
    saying(
        BilevelError, r"CG reached \|H v - b\| = .* in 2 iterations, but tolerance=1e-09 .*raise max_iterations",
        lambda: hypergradient(Q.problem, X, Y, AID(solver=CG(tolerance=1e-9, max_iterations=2))),
    )  # fmt: skip


def test_shapes_that_disagree() -> None:
    saying(
        ShapeError, r"y has the shapes \[5\], but init_inner\(x\) returns \[4\] for each problem.*pass y=None",
        lambda: hypergradient(Q.problem, X, noise(5)),
    )  # fmt: skip
    saying(ShapeError, r"dual has the shapes \[3\], but", lambda: hypergradient(Q.problem, X, Y, dual=noise(3)))
    saying(ShapeError, r"y has the shapes \[4\], but init_inner", lambda: hypergradient(Q.problem, X, {"w": Y}))
    saying(
        ShapeError, r"init_inner\(x\) has a tensor of shape \[4\], but its first axis must be the 2 problems",
        lambda: hypergradient(dataclasses.replace(Q.problem, batched=2), X),
    )  # fmt: skip
    saying(
        ShapeError, r"x has a tensor of shape \[3\], but its first axis must be the 4 problems",
        lambda: hypergradient(dataclasses.replace(Q.problem, batched=4, shared_x=False), X),
    )  # fmt: skip
    saying(
        ShapeError, r"outer_loss returns \[4\], but it must return a scalar tensor for each problem; take the mean",
        lambda: hypergradient(dataclasses.replace(Q.problem, outer_loss=lambda x, y, _: y), X),
    )  # fmt: skip
    saying(
        ShapeError, "inner_loss returns float, but it must return a scalar tensor",
        lambda: hypergradient(dataclasses.replace(Q.problem, inner_loss=lambda x, y, _: 1.0), X, None, AID(inner=STEPS)),  # type: ignore[arg-type,return-value]
    )  # fmt: skip
    saying(
        ShapeError,
        "x holds a torch.int64, but all its leaves must be floating",
        lambda: hypergradient(Q.problem, [X, X.long()]),
    )
    saying(ShapeError, "x holds a float, but all its leaves", lambda: hypergradient(Q.problem, [X, 1.0]))
    saying(
        ShapeError, "x mixes torch.float64 on cpu with torch.float32", lambda: hypergradient(Q.problem, [X, X.float()])
    )
    saying(ShapeError, r"x is \[\], but it must hold at least one tensor", lambda: hypergradient(Q.problem, []))


def test_dtypes_and_batches_that_disagree() -> None:
    saying(
        ShapeError, "x is torch.float64 on cpu, but y, which init_inner.*, is torch.float32 on cpu.*dtype=x.dtype",
        lambda: hypergradient(dataclasses.replace(UNKNOWN, init_inner=lambda x: torch.zeros(4)), X),
    )  # fmt: skip
    two = dataclasses.replace(UNKNOWN, batched=2, init_inner=lambda x: torch.zeros(2, 4, dtype=DOUBLE))
    for data, has in ((torch.zeros(3), r"tensor of shape \[3\]"), (3.0, "float")):
        saying(
            ShapeError, f"the batch of outer_loss has a {has}, but the first axis .* must be the 2 problems; stack them",
            partial(hypergradient, two.with_batch(outer=data, inner=torch.zeros(2)), X),
        )  # fmt: skip
    saying(
        ShapeError, "outer_loss returns torch.complex128, but it must return a scalar",
        lambda: hypergradient(dataclasses.replace(UNKNOWN, outer_loss=lambda x, y, _: y.sum() + 0j), X),
    )  # fmt: skip


ALL = [
    AID(inner=STEPS), AID(inner=STEPS, solver=FixedPoint(step_size=0.5, iterations=2)), ITD(inner=STEPS),
    ITD(inner=STEPS, memory="remat"), ITD(inner=STEPS, memory="mixed"),
    Exact(inner=STEPS), StocBiONeumann(inner=STEPS, eta=0.5, Q=2), PZOBO(inner=STEPS),
]  # fmt: skip


@pytest.mark.parametrize("estimator", ALL, ids=lambda each: type(each).__name__)
def test_losses_that_depend_on_nothing(estimator: Any) -> None:
    def solved(**changes: Any) -> Callable[[], Any]:
        return lambda: hypergradient(dataclasses.replace(UNKNOWN, **changes), X, Y, estimator)

    saying(
        BilevelError, "outer_loss does not depend on y, but the hypergradient passes through y; .*without detach",
        solved(outer_loss=lambda x, y, _: x.sum()),
    )  # fmt: skip
    saying(BilevelError, "outer_loss does not depend on x or y", solved(outer_loss=lambda x, y, _: torch.ones(())))
    saying(
        BilevelError, "inner_loss does not depend on y, but y minimises it", solved(inner_loss=lambda x, y, _: x.sum())
    )
    saying(
        BilevelError, "neither outer_loss nor inner_loss depends on x, but x is what is optimised",
        solved(inner_loss=lambda x, y, _: y @ y, outer_loss=lambda x, y, _: y.sum()),
    )  # fmt: skip
    one = solved(inner_loss=lambda x, y, _: y @ y, outer_loss=lambda x, y, _: y.sum() + x @ x)()
    assert (one.value - 2 * X).norm() < 1e-12  # x acts through f alone, which is a problem all the same


def test_inference_mode_is_said() -> None:
    with torch.inference_mode():
        saying(
            BilevelError, "inference mode is on, but derivatives of the losses", lambda: hypergradient(UNKNOWN, X, Y)
        )
    with torch.no_grad():
        hypergradient(UNKNOWN, X, Y)


def test_an_outer_loop_that_diverges_says_at_which_step() -> None:
    algorithm = BiO(estimator=AID(solver=CG(iterations=4)), step_size=1e160)
    saying(DivergenceError, "at outer step [12]", lambda: run(UNKNOWN, algorithm, X, 5))
