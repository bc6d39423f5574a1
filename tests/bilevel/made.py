"""Small problems and what is known of them without the package's help."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.bilevel import BilevelProblem, Constants, Quadratic

DOUBLE = torch.float64


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def without_constants(problem: BilevelProblem) -> BilevelProblem:
    return dataclasses.replace(problem, constants=Constants())


def contraction(q: Quadratic, step_size: float, steps: int) -> Tensor:
    """``(I - a A)^n``."""
    return torch.linalg.matrix_power(torch.eye(len(q.A), dtype=DOUBLE) - step_size * q.A, steps)


class Logistic:
    """Logistic regression with one l2 penalty ``exp(x_j)`` a feature: ``g`` is the training loss and ``f`` the validation loss,
    with a little of ``x`` in it."""

    def __init__(self, seed: int = 0, examples: int = 12, features: int = 4) -> None:
        self.features = features
        truth = noise(features, seed=seed + 50)
        self.train, self.val = (self._set(examples, truth, seed + k) for k in (1, 2))

    def _set(self, examples: int, truth: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        z = noise(examples, self.features, seed=seed)
        return z, ((z @ truth + noise(examples, seed=seed + 9)) > 0).to(DOUBLE)

    @staticmethod
    def inner_loss(x: Tensor, y: Tensor, batch: Any) -> Tensor:
        z, t = batch
        return F.softplus(z @ y).mean() - (t * (z @ y)).mean() + (x.exp() * y * y).sum() / 2

    @staticmethod
    def outer_loss(x: Tensor, y: Tensor, batch: Any) -> Tensor:
        z, t = batch
        return F.softplus(z @ y).mean() - (t * (z @ y)).mean() + 0.1 * (x * x).sum() + 0.05 * (x * y).sum()

    @property
    def problem(self) -> BilevelProblem:
        problem = BilevelProblem(self.outer_loss, self.inner_loss, lambda x: torch.zeros(self.features, dtype=DOUBLE))
        return problem.with_batch(outer=self.val, inner=self.train)

    def solve(self, x: Tensor) -> Tensor:
        """``y*(x)`` by Newton's method, to the last digit."""
        y = torch.zeros(self.features, dtype=DOUBLE)
        for _ in range(8):
            gradient = torch.func.grad(self.inner_loss, argnums=1)(x, y, self.train)
            hessian = torch.func.jacrev(torch.func.grad(self.inner_loss, argnums=1), argnums=1)(x, y, self.train)
            y = y - torch.linalg.solve(hessian, gradient)
        return y

    def phi(self, x: Tensor) -> Tensor:
        return self.outer_loss(x, self.solve(x), self.val)

    def finite_differences(self, x: Tensor, width: float = 1e-5) -> Tensor:
        """``grad Phi`` by central differences."""
        units = torch.eye(len(x), dtype=DOUBLE)
        return torch.stack([(self.phi(x + width * u) - self.phi(x - width * u)) / (2 * width) for u in units])
