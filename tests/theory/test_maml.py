"""The bounds on the smoothness of MAML's meta-objective against its Hessian, which autograd gives."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap

from metalearn.errors import ConfigError
from metalearn.theory import (
    contraction,
    gradient_factor,
    inner_growth,
    itd_bias,
    maml_inner_step,
    meta_smoothness,
    outer_step,
)
from tests.theory.made import DOUBLE, FAMILIES, Losses, hessian, meta_objective, value

PROBLEMS, SIZE = 50, 3
"""Of each of four families: 200 in all."""


class Drawn:
    """Problems of a family, with points and inner step sizes of their own."""

    def __init__(self, name: str, steps: int, same: bool, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.family, self.steps = FAMILIES[name], steps
        self.support = Losses.draw(PROBLEMS, 4, SIZE, self.family.convex, generator)
        self.query = self.support if same else Losses.draw(PROBLEMS, 4, SIZE, self.family.convex, generator)
        (of_support, self.rho), (of_query, _) = (part.constants(self.family) for part in (self.support, self.query))
        self.L = torch.maximum(of_support, of_query)
        self.step_size = 10 ** (torch.rand(PROBLEMS, generator=generator, dtype=DOUBLE) * 2.5 - 2.5) / self.L
        self.w, self.u = torch.randn(2, PROBLEMS, SIZE, generator=generator, dtype=DOUBLE)

    def over_problems(self, w: Tensor, of: str) -> Tensor:
        """Derivatives of the meta-objective at a point of each problem."""

        def at(support: Losses, query: Losses, step_size: Tensor, point: Tensor) -> Tensor:
            kind = hessian if of == "hessian" else grad
            return kind(partial(meta_objective, self.family.shape, self.steps, support, query, step_size))(point)

        return vmap(at)(self.support, self.query, self.step_size, w)

    def bounds(self, same: bool, mu: float | None) -> Tensor:
        """``L_w`` of each problem at its point."""
        slopes = [
            vmap(grad(partial(value, self.family.shape), 1))(part, self.w).norm(dim=-1)
            for part in (self.support, self.query)
        ]
        rows = zip(
            self.L.tolist(), self.rho.tolist(), self.step_size.tolist(), *(s.tolist() for s in slopes), strict=True
        )
        return torch.tensor(
            [
                meta_smoothness(
                    L=L, rho=rho, step_size=size, steps=self.steps, gradient=of_support,
                    query_gradient=None if same else of_query, mu=mu,
                )
                for L, rho, size, of_support, of_query in rows
            ],
            dtype=DOUBLE,
        )  # fmt: skip


@pytest.mark.parametrize("same", [True, False], ids=["the same loss", "another query loss"])
@pytest.mark.parametrize(("name", "steps"), [("quadratic", 8), ("logistic", 5), ("cosine", 3), ("tanh", 2)])
def test_the_bound_holds_on_random_problems(name: str, steps: int, same: bool) -> None:
    drawn = Drawn(name, steps, same)
    curvature = torch.linalg.matrix_norm(drawn.over_problems(drawn.w, "hessian"), 2)
    here, there = drawn.over_problems(drawn.w, "gradient"), drawn.over_problems(drawn.u, "gradient")
    slope = (here - there).norm(dim=-1) / (drawn.w - drawn.u).norm(dim=-1)
    for mu in [None, 0.0] if drawn.family.convex else [None]:
        bound = drawn.bounds(same, mu) * (1 + 1e-9)
        assert bool((curvature <= bound).all())
        assert bool((slope <= bound).all())


def wavy(gradient: float, L: float, rho: float, width: float, u: Tensor) -> Tensor:
    """A loss with ``l'' = -(L - width) + width sin(rho u/width)``: near ``-L`` everywhere, yet as steep as ``rho`` allows."""
    wave = width**2 / rho * (width / rho * torch.sin(rho * u / width) - u)
    return gradient * u - (L - width) * u * u / 2 - wave


@pytest.mark.parametrize("of_query", [None, 5.0], ids=["the same loss", "another query loss"])
@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_the_bound_is_attained_on_its_worst_case(steps: int, of_query: float | None) -> None:
    """With ``a L = 1`` all iterates stand at one phase of the wave, so that every term of the bound is an equation.

    The other query loss is a quadratic that bends down by ``L``, with the gradient ``of_query`` at the start.
    """
    L, rho, width = 2.0, 3.0, 1e-4
    gradient = (L - width) * round(rho / (2 * math.pi * width)) * 2 * math.pi * width / rho
    loss = partial(wavy, gradient, L, rho, width)

    def objective(w: Tensor) -> Tensor:
        for _ in range(steps):
            w = w - grad(loss)(w) / (L - width)
        return loss(w) if of_query is None else of_query * w - L * w * w / 2

    start = torch.zeros((), dtype=DOUBLE)
    assert float(grad(loss)(start)) == pytest.approx(gradient)
    curvature = abs(float(hessian(objective)(start)))
    known = {"L": L, "rho": rho, "step_size": 1 / (L - width), "steps": steps}
    bound = meta_smoothness(**known, gradient=gradient, query_gradient=of_query)  # type: ignore[arg-type]
    assert 0.99 * bound <= curvature <= bound
    assert gradient_factor(**known) * gradient > 0.3 * meta_smoothness(**known, gradient=gradient)  # type: ignore[arg-type]


def test_how_far_inner_steps_stretch_a_distance() -> None:
    """Exactly, on a quadratic with the eigenvalues -L and L; and no further on random problems."""
    curvatures = torch.tensor([-2.0, 2.0], dtype=DOUBLE)
    w = torch.eye(2, dtype=DOUBLE)
    for _ in range(4):
        w = w - 0.3 * w * curvatures
    assert float(w.abs().max()) == pytest.approx(inner_growth(L=2.0, step_size=0.3, steps=4))
    assert float(w[1].norm()) == pytest.approx(inner_growth(L=2.0, step_size=0.3, steps=4, mu=2.0))
    assert inner_growth(L=2.0, step_size=1.5, steps=4, mu=0.0) == 2.0**4  # beyond 2/L, where the sign changes
    for name, steps in (("cosine", 6), ("logistic", 6)):
        drawn = Drawn(name, steps, True, seed=1)
        ends = [points.clone() for points in (drawn.w, drawn.u)]
        for _ in range(steps):
            ends = [
                points
                - drawn.step_size[:, None] * vmap(grad(partial(value, drawn.family.shape), 1))(drawn.support, points)
                for points in ends
            ]
        grown = (ends[0] - ends[1]).norm(dim=-1) / (drawn.w - drawn.u).norm(dim=-1)
        mu = 0.0 if drawn.family.convex else None
        for factor, L, size in zip(grown.tolist(), drawn.L.tolist(), drawn.step_size.tolist(), strict=True):
            assert factor <= inner_growth(L=L, step_size=size, steps=steps, mu=mu) * (1 + 1e-9)


def test_what_the_proven_step_size_keeps_bounded() -> None:
    """Whatever the number of steps: the growth, squared, below ``e^(1/4)``, and the other factor below ``0.171 rho/L``."""
    for steps in (1, 2, 5, 20, 100, 10_000):
        size = maml_inner_step(L=3.0, steps=steps)
        assert inner_growth(L=3.0, step_size=size, steps=steps) ** 2 <= math.exp(0.25)
        assert gradient_factor(L=3.0, rho=6.0, step_size=size, steps=steps) <= 0.171 * 6.0 / 3.0
    assert inner_growth(L=1.0, step_size=0.1, steps=100) ** 2 > 1e8


def test_what_is_too_large_for_a_float_is_infinite() -> None:
    """And no factor of 0 makes it nan."""
    huge = {"L": 1e4, "step_size": 1.0, "steps": 100}
    assert inner_growth(**huge) == math.inf  # type: ignore[arg-type]
    for rho, gradient, query in ((0.0, 1.0, None), (1.0, 0.0, None), (1.0, 0.0, 1.0), (1.0, 1.0, 1.0)):
        bound = meta_smoothness(**huge, rho=rho, gradient=gradient, query_gradient=query)  # type: ignore[arg-type]
        assert bound == math.inf
    assert gradient_factor(**huge, rho=0.0) == 0  # type: ignore[arg-type]
    assert contraction(mu=1.0, L=1e4, step_size=1.0, steps=100) == math.inf
    assert itd_bias(mu=1.0, L=1e4, L_xy=0.0, gradient=1.0, step_size=1.0, steps=100) == 0


@pytest.mark.parametrize("name", ["cosine", "logistic"])
def test_an_outer_step_lowers_the_meta_objective(name: str) -> None:
    drawn = Drawn(name, 4, True, seed=2)
    at = vmap(partial(meta_objective, drawn.family.shape, drawn.steps))
    slope = drawn.over_problems(drawn.w, "gradient")
    sizes = torch.tensor([outer_step(smoothness=float(bound)) for bound in drawn.bounds(True, None)], dtype=DOUBLE)
    moved = drawn.w - sizes[:, None] * slope
    before, after = (at(drawn.support, drawn.query, drawn.step_size, points) for points in (drawn.w, moved))
    fall = sizes * slope.square().sum(-1) / 2
    assert bool((after <= before - fall + 1e-12).all())


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"mu": 3.0}, r"meta_smoothness\(mu=3\), but it must be from -L to L, with L = 2; leave it None"),
        ({"rho": -1.0}, r"meta_smoothness\(rho=-1.0\), but it must be a finite number of at least 0; use"),
        ({"L": 0.0}, r"meta_smoothness\(L=0.0\), but it must be a finite number above 0; use"),
        ({"steps": 0}, r"meta_smoothness\(steps=0\), but it must be a whole number, at least 1; use steps=1"),
        ({"gradient": math.nan}, r"meta_smoothness\(gradient=nan\), but it must be"),
        ({"step_size": "a"}, r"meta_smoothness\(step_size='a'\), but it must be"),
    ],
)
def test_wrong_constants_are_one_line(arguments: dict[str, float], line: str) -> None:
    known = {"L": 2.0, "rho": 1.0, "step_size": 0.1, "steps": 2, "gradient": 1.0}
    with pytest.raises(ConfigError, match=line):
        meta_smoothness(**{**known, **arguments})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="factor=0.5"):
        outer_step(smoothness=1.0, factor=0.5)
