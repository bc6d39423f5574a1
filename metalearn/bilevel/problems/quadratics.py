"""A generic quadratic problem, whose solution and hypergradient are known in closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from metalearn.bilevel.problem import BilevelProblem, Constants
from metalearn.checks import UNBOUNDED, check_flag, check_number, check_whole

__all__ = ["Quadratic", "quadratic"]


@dataclass(frozen=True)
class Quadratic:
    """``g = y'Ay/2 - y'(Cx + d)``, ``f = |Y y - t|^2/2 + x'Ex/2 + e'x + x'Gy`` in closed form.

    Attributes:
        A: ``[D, D]``, symmetric, positive definite.
        C: ``[D, P]``.
        d: ``[D]``.
        Y: ``[n, D]``.
        t: ``[n]``.
        E: ``[P, P]``, symmetric.
        e: ``[P]``.
        G: ``[P, D]``.

    Example:
        >>> import torch
        >>> from metalearn.bilevel import Quadratic
        >>> one, zero = torch.eye(1), torch.zeros(1, 1)
        >>> made = Quadratic(A=one, C=one, d=one[0], Y=one, t=zero[0], E=zero, e=zero[0], G=zero)
        >>> x = torch.tensor([2.0])
        >>> made.solution(x), made.hypergradient(x)  # y* = x + 1 and f = y^2/2
        (tensor([3.]), tensor([3.]))
    """

    A: Tensor
    C: Tensor
    d: Tensor
    Y: Tensor
    t: Tensor
    E: Tensor
    e: Tensor
    G: Tensor

    def inner_loss(self, x: Tensor, y: Tensor, _: object) -> Tensor:
        """``g``, ``[]``."""
        return y @ self.A @ y / 2 - y @ (self.C @ x + self.d)

    def outer_loss(self, x: Tensor, y: Tensor, _: object) -> Tensor:
        """``f``, ``[]``."""
        miss = self.Y @ y - self.t
        return miss @ miss / 2 + x @ self.E @ x / 2 + self.e @ x + x @ self.G @ y

    def solution(self, x: Tensor) -> Tensor:
        """``y*(x) = A^-1 (Cx + d)``."""
        return torch.linalg.solve(self.A, self.C @ x + self.d)

    def partial(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """``grad_x f`` and ``grad_y f``."""
        return self.E @ x + self.e + self.G @ y, self.Y.T @ (self.Y @ y - self.t) + self.G.T @ x

    def hypergradient(self, x: Tensor) -> Tensor:
        """``grad Phi(x) = grad_x f + C'A^-1 grad_y f(y*)``."""
        of_x, of_y = self.partial(x, self.solution(x))
        return of_x + self.C.T @ torch.linalg.solve(self.A, of_y)

    @property
    def constants(self) -> Constants:
        """Exact ones."""
        values = torch.linalg.eigvalsh(self.A)
        norms = [float(torch.linalg.matrix_norm(each, 2)) for each in (self.C, self.G, self.Y.T @ self.Y, self.E)]
        response = torch.linalg.solve(self.A, self.C)
        curvature = (self.Y @ response).T @ (self.Y @ response) + self.E + self.G @ response + (self.G @ response).T
        of_phi = torch.linalg.eigvalsh(curvature)
        return Constants(
            mu=float(values[0]), L=float(values[-1]), L_xy=norms[0], rho_J=0.0, rho_H=0.0,
            L_fxx=norms[3], L_fxy=norms[1], L_fyy=norms[2],
            mu_x=float(of_phi[0]) if of_phi[0] > 0 else None, L_phi=float(of_phi[-1]) if of_phi[-1] > 0 else None,
        )  # fmt: skip

    @property
    def problem(self) -> BilevelProblem:
        """As a problem from ``y = 0``."""
        return BilevelProblem(
            self.outer_loss, self.inner_loss, partial(_make_zeros, len(self.d)), constants=self.constants
        )


def quadratic(size: int, outer_size: int, kappa: float, seed: int, coupled: bool = True) -> Quadratic:
    """Draw a random one, whose ``A`` has eigenvalues from ``1/kappa`` to 1, in float64.

    Args:
        size: how many entries ``y`` has, ``D``.
        outer_size: how many entries ``x`` has, ``P``.
        kappa: the condition number of ``A``, at least 1.
        seed: the seed by which the problem is drawn.
        coupled: whether ``f`` has the term ``x'Gy``.

    Example:
        >>> from metalearn.bilevel import quadratic
        >>> constants = quadratic(size=5, outer_size=3, kappa=10.0, seed=0).constants
        >>> round(constants.mu, 6), round(constants.L, 6)
        (0.1, 1.0)
    """
    check_whole("size", size, 1, remedy="use 5", loose=True)
    check_whole("outer_size", outer_size, 1, remedy="use 5", loose=True)
    check_number("kappa", kappa, "use 10", least=1, loose=True)
    check_whole("seed", seed, remedy="use 0", most=UNBOUNDED)
    check_flag("coupled", coupled)
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    basis = torch.linalg.qr(draw(size, size))[0]
    spread = torch.logspace(-math.log10(kappa), 0, size, dtype=torch.float64)
    matrix = (basis * spread) @ basis.T
    return Quadratic(
        (matrix + matrix.T) / 2, draw(size, outer_size), draw(size), draw(size, size) / size**0.5, draw(size),
        torch.eye(outer_size, dtype=torch.float64), draw(outer_size), (0.1 if coupled else 0.0) * draw(outer_size, size),
    )  # fmt: skip


def _make_zeros(size: int, x: Tensor) -> Tensor:
    return x.new_zeros(size)
