"""The bound on the smoothness of ``Phi(x) = f(x, y*(x))`` against its Hessian, on random problems with known constants."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.func import grad, jacrev, vmap

from metalearn.bilevel import Constants, smoothness_of_phi
from tests.theory.made import DOUBLE, FAMILIES, Family

PROBLEMS, SIZE, TERMS = 50, 3, 4
"""Of each of four families: 200 in all."""
FAMILIES_OF_G = {
    "quadratic": FAMILIES["quadratic"],
    "logistic": FAMILIES["logistic"],
    "log cosh": Family(lambda t: torch.log(torch.cosh(t)), 1.0, 4 / (3 * 3**0.5), True),
    "root": Family(lambda t: torch.sqrt(1 + t * t), 1.0, 48 / (25 * 5**0.5), True),
}


class Problem(NamedTuple):
    """``g = mu |y|^2/2 + sum_i c_i s(a_i x + b_i y + o_i)`` and ``f = sum_i d_i cos(p_i x + q_i y)``, or ``f`` a quadratic."""

    mu: Tensor
    a: Tensor
    b: Tensor
    c: Tensor
    o: Tensor
    d: Tensor
    p: Tensor
    q: Tensor

    @classmethod
    def draw(cls, generator: torch.Generator) -> Problem:
        def noise(*shape: int) -> Tensor:
            return torch.randn(PROBLEMS, *shape, generator=generator, dtype=DOUBLE)

        scale = 10 ** (torch.rand(PROBLEMS, generator=generator, dtype=DOUBLE) * 4 - 2)[:, None]
        return cls(
            10 ** noise().clamp(-1.5, 0.5), noise(TERMS, SIZE), noise(TERMS, SIZE), noise(TERMS).abs(), noise(TERMS),
            noise(TERMS) * scale, noise(TERMS, SIZE), noise(TERMS, SIZE),
        )  # fmt: skip


def inner(family: Family, part: Problem, x: Tensor, y: Tensor) -> Tensor:
    return part.mu * (y @ y) / 2 + part.c @ family.shape(part.a @ x + part.b @ y + part.o)


def outer(part: Problem, x: Tensor, y: Tensor) -> Tensor:
    return part.d @ torch.cos(part.p @ x + part.q @ y)


def hypergradient(g: Callable[..., Tensor], f: Callable[..., Tensor], x: Tensor, y: Tensor) -> Tensor:
    """``grad_x f - J H^-1 grad_y f`` at any ``y``, dense."""
    v = torch.linalg.solve(jacrev(grad(g, 1), 1)(x, y), grad(f, 1)(x, y))
    return grad(f)(x, y) - jacrev(grad(g), 1)(x, y) @ v


def measure_curvature(family: Family, part: Problem, x: Tensor) -> Tensor:
    """The norm of ``Phi''`` at a point, through ``y*`` by Newton's method and ``dy*/dx = -H^-1 J'``."""
    g, f = partial(inner, family, part), partial(outer, part)
    y = torch.zeros_like(x)
    for _ in range(60):  # damped: the first steps of a plain one may overshoot
        y = y - 0.7 * torch.linalg.solve(jacrev(grad(g, 1), 1)(x, y), grad(g, 1)(x, y))
    response = -torch.linalg.solve(jacrev(grad(g, 1), 1)(x, y), jacrev(grad(g, 1))(x, y))
    of_x, of_y = jacrev(partial(hypergradient, g, f), (0, 1))(x, y)
    return torch.linalg.matrix_norm(of_x + of_y @ response, 2)


def read_constants(family: Family, part: Problem, index: int) -> Constants:
    """The constants of a problem from the largest derivatives of its functions."""
    mu, a, b, c, _, d, p, q = (value[index] for value in part)

    def mass(weights: Tensor, left: Tensor, right: Tensor) -> float:
        """A bound on the norm of ``sum_i w_i l_i r_i'`` for all weights up to these."""
        parts = [torch.linalg.matrix_norm((weights[:, None] * side).mT @ side, 2) for side in (left, right)]
        return float((parts[0] * parts[1]).sqrt())

    reach = float(torch.cat([a, b], -1).norm(dim=-1).max())
    return Constants(
        mu=float(mu), L=float(mu) + family.second * mass(c, b, b), L_xy=family.second * mass(c, a, b),
        rho_J=family.third * reach * mass(c, a, b), rho_H=family.third * reach * mass(c, b, b),
        L_fxx=mass(d.abs(), p, p), L_fxy=mass(d.abs(), p, q), L_fyy=mass(d.abs(), q, q),
        M=float((d.abs()[:, None] * q.abs()).sum(0).norm()),
    )  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES_OF_G)
def test_the_bound_holds_on_random_problems(name: str) -> None:
    """That of all constants, and the looser one of the thesis, where the largest stands for each of them."""
    family = FAMILIES_OF_G[name]
    generator = torch.Generator().manual_seed(len(name))
    part = Problem.draw(generator)
    x = torch.randn(PROBLEMS, SIZE, generator=generator, dtype=DOUBLE)
    measured = vmap(partial(measure_curvature, family))(part, x)
    for index, curvature in enumerate(measured.tolist()):
        known = read_constants(family, part, index)
        parts = [known.L, known.L_xy, known.L_fxx, known.L_fxy, known.L_fyy]
        loose = Constants(mu=known.mu, L=max(parts), M=known.M, rho_J=known.rho_J, rho_H=known.rho_H)  # type: ignore[type-var]
        assert curvature <= smoothness_of_phi(known) <= smoothness_of_phi(loose) * (1 + 1e-9)


@pytest.mark.parametrize(("p", "a", "c", "e"), [(0.004, 1.0, 0.0, 0.0), (250.0, 0.0, 1.0, 0.0), (0.7, 0.0, 0.0, 2.0)])
def test_the_bound_is_attained(p: float, a: float, c: float, e: float) -> None:
    """At 0 of ``g = y^2/2 - p x y + a x^2 y/2 + c y^3/6`` and ``f = M y``: each of its terms by turns. Last by
    ``f = e (x + y)^2/2``, where ``g`` is a quadratic."""
    M = 0.3 if e == 0 else 0.0

    def g(x: Tensor, y: Tensor) -> Tensor:
        return (y * y / 2 - p * x * y + a * x * x * y / 2 + c * y**3 / 6).sum()

    def f(x: Tensor, y: Tensor) -> Tensor:
        return (M * y + e * (x + y) ** 2 / 2).sum()

    at = torch.zeros(1, dtype=DOUBLE)
    of_x, of_y = jacrev(partial(hypergradient, g, f), (0, 1))(at, at)
    curvature = abs(float(of_x + of_y * p))
    bound = smoothness_of_phi(Constants(mu=1.0, L_xy=p, rho_J=a, rho_H=c, L_fxx=e, L_fxy=e, L_fyy=e, M=M))
    assert 0.99 * bound <= curvature <= bound * (1 + 1e-12)


def test_the_form_in_print_fails_where_the_bound_holds() -> None:
    """``rho_J M^2/mu`` in the place of ``rho_J M/mu``, on ``g = y^2/2 - p x y + x^2 y/2`` and ``f = M y`` with ``M = 0.01``."""
    p, M = 1e-4, 0.01
    curvature = M  # Phi = M (p x - x^2/2)
    known = Constants(mu=1.0, L_xy=p, rho_J=1.0, rho_H=0.0, L_fxx=0.0, L_fxy=0.0, L_fyy=0.0, M=M)
    bound = smoothness_of_phi(known)
    assert curvature <= bound <= 1.001 * curvature
    assert bound - (1 + p) * (M - M * M) < 0.02 * curvature
