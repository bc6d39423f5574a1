"""Losses of known smoothness, many at once, and their meta-objective written out."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import grad, jacrev

DOUBLE = torch.float64
Shape = Callable[[Tensor], Tensor]


class Family(NamedTuple):
    """A function of one number, and the largest of its second and third derivative."""

    shape: Shape
    second: float
    third: float
    convex: bool


FAMILIES = {
    "quadratic": Family(lambda t: t * t / 2, 1.0, 0.0, True),
    "logistic": Family(torch.nn.functional.softplus, 0.25, 1 / (6 * 3**0.5), True),
    "cosine": Family(lambda t: 1 - torch.cos(t), 1.0, 1.0, False),
    "tanh": Family(torch.tanh, 4 / (3 * 3**0.5), 2.0, False),
}


class Losses(NamedTuple):
    """``l(w) = sum_i c_i s(a_i w + b_i)`` for each of many problems."""

    a: Tensor
    b: Tensor
    c: Tensor

    @classmethod
    def draw(cls, problems: int, terms: int, size: int, convex: bool, generator: torch.Generator) -> Losses:
        a = torch.randn(problems, terms, size, generator=generator, dtype=DOUBLE)
        b = 2 * torch.randn(problems, terms, generator=generator, dtype=DOUBLE)
        c = torch.randn(problems, terms, generator=generator, dtype=DOUBLE)
        return cls(a, b, c.abs() if convex else c)

    def constants(self, family: Family) -> tuple[Tensor, Tensor]:
        """``L`` and ``rho`` of each problem, from the largest derivatives."""
        mass = torch.linalg.matrix_norm(torch.einsum("pi,pid,pie->pde", self.c.abs(), self.a, self.a), 2)
        return family.second * mass, family.third * mass * self.a.norm(dim=-1).max(-1).values


def value(shape: Shape, part: Losses, w: Tensor) -> Tensor:
    """``l(w)`` of one problem."""
    return part.c @ shape(part.a @ w + part.b)


def meta_objective(shape: Shape, steps: int, support: Losses, query: Losses, step_size: Tensor, w: Tensor) -> Tensor:
    """``l_Q(w_N)`` of one problem, with gradients of autograd alone."""
    for _ in range(steps):
        w = w - step_size * grad(lambda u: value(shape, support, u))(w)
    return value(shape, query, w)


def hessian(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The Hessian, by going back twice: torch's own goes forward, for which it compiles with what it says is deprecated."""
    return jacrev(grad(function))
