"""The worst cases of the lower bounds (arXiv 2108.00330, chapter 3), whose solution is known.

They couple neighbouring coordinates alone, through ``Z`` (``Z[i, d-1-i] = 1``, ``Z[i, d-i] = -1`` for ``i >= 1``, counted
from 0) with ``Z^2 = tridiag(-1, 2, -1)`` but ``Z^2[0, 0] = 1``. From ``x = y = 0`` each oracle call reaches further coordinates.
So no method needs fewer than ``ln(1/eps) / ln(1/r)`` calls where the solution is ``x*_i = r^i``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from metalearn.bilevel.problem import BilevelProblem, Constants
from metalearn.checks import check_number, check_whole
from metalearn.errors import ConfigError

__all__ = ["WorstCase", "simple_worst_case", "worst_case"]


@dataclass(frozen=True)
class WorstCase:
    """A worst-case instance.

    Attributes:
        problem: the problem, which starts at ``y = 0`` and knows its constants; ``x`` and ``y`` are ``[d]``.
        solution: the solution ``x*``, ``[d]``.
        inner_solution: the function ``x -> y*(x)``.
        hypergradient: the function ``x -> grad Phi(x)``, exact.
        kappa_x: the condition number of ``Phi``.
        kappa_y: the condition number of ``g``.
        ratio: the ratio ``r`` of ``x*_i = r^i``.

    Example:
        >>> from metalearn.bilevel import simple_worst_case
        >>> case = simple_worst_case(50, mu_x=1.0, mu_y=1.0)
        >>> case.hypergradient(case.solution).abs().max().item() < 1e-9
        True
    """

    problem: BilevelProblem
    solution: Tensor
    inner_solution: Callable[[Tensor], Tensor]
    hypergradient: Callable[[Tensor], Tensor]
    kappa_x: float
    kappa_y: float
    ratio: float

    def least_calls(self, tolerance: float) -> float:
        """No method needs fewer oracle calls to ``|x - x*| <= tolerance |x*|``: ``ln(1/tolerance) / ln(1/r)``."""
        return math.log(1 / tolerance) / math.log(1 / self.ratio)


def worst_case(
    size: int,
    *,
    mu_x: float,
    mu_y: float,
    L_x: float = 1.0,
    L_y: float = 1.0,
    L_inner: float | None = None,
    L_xy: float = 0.0,
    L_inner_xy: float = 1.0,
) -> WorstCase:
    """Make the strongly-convex--strongly-convex worst case, bound ``Omega(1/(sqrt(mu_x) mu_y))``.

    ``g = y'Py/2 - (L_inner_xy/2) x'Zy + b'y`` and
    ``f = x'(aZ^2 + mu_x I)x/2 - (a b_0/L_inner_xy) x'Z^3 y + (L_xy/2) x'Zy + (L_y/2)|y|^2 + c'y`` with ``P = b_0 Z^2 + mu_y I``,
    ``a = (L_x - mu_x)/4``, ``b_0 = (L_inner - mu_y)/4``.

    Args:
        size: ``d``, about ``6/(1 - r)`` for the solution to decay within it.
        mu_x: the strong convexity of ``f`` in ``x``.
        mu_y: the strong convexity of ``g``.
        L_x: the smoothness of ``f`` in ``x``.
        L_y: the smoothness of ``f`` in ``y``.
        L_inner: the smoothness of ``g`` in ``y``; ``None`` for ``1.5 mu_y``.
        L_xy: the coupling of ``f``.
        L_inner_xy: the coupling of ``g``.

    Raises:
        ConfigError: constants out of order.

    Example:
        >>> from metalearn.bilevel import worst_case
        >>> case = worst_case(50, mu_x=0.1, mu_y=0.5)
        >>> case.solution.shape, case.hypergradient(case.solution).abs().max().item() < 1e-9
        (torch.Size([50]), True)
    """
    check_whole("size", size, 2, remedy="use 50", loose=True)
    for name, value in (("mu_x", mu_x), ("mu_y", mu_y)):
        check_number(name, value, "use 0.01", above=0, owner="worst_case", loose=True)
    for name, value in (
        ("L_x", L_x),
        ("L_y", L_y),
        ("L_inner_xy", L_inner_xy),
        ("L_inner", 1.0 if L_inner is None else L_inner),
    ):
        check_number(name, value, "use 1.0", above=0, owner="worst_case", loose=True)
    check_number("L_xy", L_xy, "use 0.0", least=0, owner="worst_case", loose=True)
    smooth = 1.5 * mu_y if L_inner is None else L_inner
    if not (mu_x < L_x and mu_y < smooth):
        raise ConfigError(
            f"worst_case(mu_x={mu_x}, L_x={L_x}, mu_y={mu_y}, L_inner={smooth}), but mu_x < L_x and mu_y < L_inner must hold; "
            "lower mu_x and mu_y"
        )
    a, b0, t = (L_x - mu_x) / 4, (smooth - mu_y) / 4, L_inner_xy
    den = mu_x * b0**2 + a * b0 * mu_y + L_xy * t * b0 / 2
    lam = (L_y * t**2 / 4 + L_xy * t * mu_y / 2 + 2 * mu_x * mu_y * b0 + a * mu_y**2) / den
    tau = mu_x * mu_y**2 / den
    r = _find_decay(2 * tau / (lam + math.sqrt(lam**2 - 4 * tau)))
    # (Z^4 + lam Z^2 + tau I) x* = gamma Z b; of the right side all but two entries vanish
    gamma = L_y * t / (2 * den)
    first = (2 + lam + tau) * r - (3 + lam) * r**2 + r**3
    b = _invert_z(_place_entries(size, first, r - 1)) / gamma
    c = L_xy / t * b - 2 * a * b0 / t**2 * _apply_z_twice(b)

    losses = _Losses(a, b0, mu_x, mu_y, L_y, L_xy, t, b, c)
    eye = torch.eye(size, dtype=torch.float64)
    matrix = _apply_z(eye)
    square = matrix @ matrix
    inner = b0 * square + mu_y * eye
    cross = L_xy / 2 * matrix - a * b0 / t * square @ matrix
    return _solve_densely(
        BilevelProblem(losses.outer, losses.inner, torch.zeros_like),
        inner, t / 2 * matrix, -b, a * square + mu_x * eye, cross, L_y, c, r,
    )  # fmt: skip


def simple_worst_case(size: int, *, mu_x: float, mu_y: float, L_y: float = 1.0, L_inner_xy: float = 1.0) -> WorstCase:
    """Make Nesterov's quadratic with the condition number ``1 + L_y L_inner_xy^2/(mu_x mu_y^2)``.

    ``g = mu_y|y|^2/2 - (L_inner_xy/2) x'Zy + b'y`` and ``f = mu_x|x|^2/2 + (L_y/2)|y|^2``.
    ``grad Phi = (mu_x I + s Z^2) x - (L_y L_inner_xy/(2 mu_y^2)) Z b`` with ``s = L_y L_inner_xy^2/(4 mu_y^2)``, and ``b``
    is such that ``x*_i = r^i``, up to ``r^d``.

    Args:
        size: how many entries ``x`` and ``y`` have, ``d``.
        mu_x: the strong convexity of ``f`` in ``x``.
        mu_y: the strong convexity, and the smoothness, of ``g``.
        L_y: the smoothness of ``f`` in ``y``.
        L_inner_xy: how strongly ``g`` couples ``x`` and ``y``.

    Example:
        >>> from metalearn.bilevel import simple_worst_case
        >>> case = simple_worst_case(50, mu_x=0.5, mu_y=1.0)
        >>> round(case.ratio, 6), case.least_calls(1e-6) < case.least_calls(1e-9)
        (0.267949, True)
    """
    check_whole("size", size, 2, remedy="use 50", loose=True)
    for name, value in (("mu_x", mu_x), ("mu_y", mu_y), ("L_y", L_y), ("L_inner_xy", L_inner_xy)):
        check_number(name, value, "use 0.1", above=0, owner="simple_worst_case", loose=True)
    t = L_inner_xy
    q = 4 * mu_x * mu_y**2 / (L_y * t**2)
    r = _find_decay(q)
    # the first row of (Z^2 + q I) x*; all others vanish
    b = _invert_z(_place_entries(size, (1 + q) * r - r**2)) * t / 2

    losses = _Losses(0.0, 0.0, mu_x, mu_y, L_y, 0.0, t, b, torch.zeros_like(b))
    eye = torch.eye(size, dtype=torch.float64)
    return _solve_densely(
        BilevelProblem(losses.outer, losses.inner, torch.zeros_like),
        mu_y * eye, t / 2 * _apply_z(eye), -b, mu_x * eye, torch.zeros_like(eye), L_y, torch.zeros_like(b), r,
    )  # fmt: skip


def _solve_densely(
    problem: BilevelProblem, A: Tensor, C: Tensor, d: Tensor, E: Tensor, G: Tensor, L_y: float, c: Tensor, r: float
) -> WorstCase:
    """Solve ``g = y'Ay/2 - y'(Cx + d)``, ``f = x'Ex/2 + x'Gy + (L_y/2)|y|^2 + c'y`` densely."""
    response, offset = torch.linalg.solve(A, C), torch.linalg.solve(A, d)
    curvature = E + G @ response + (G @ response).T + L_y * response.T @ response
    linear = G @ offset + response.T @ (L_y * offset + c)
    curvature = (curvature + curvature.T) / 2
    of_phi, of_g = torch.linalg.eigvalsh(curvature), torch.linalg.eigvalsh(A)
    constants = Constants(
        mu=float(of_g[0]), L=float(of_g[-1]), L_xy=float(torch.linalg.matrix_norm(C, 2)), rho_J=0.0, rho_H=0.0,
        L_fxx=float(torch.linalg.matrix_norm(E, 2)), L_fxy=float(torch.linalg.matrix_norm(G, 2)), L_fyy=L_y,
        mu_x=float(of_phi[0]), L_phi=float(of_phi[-1]),
    )  # fmt: skip
    return WorstCase(
        problem=BilevelProblem(problem.outer_loss, problem.inner_loss, problem.init_inner, constants),
        solution=torch.linalg.solve(curvature, -linear),
        inner_solution=partial(_map_affinely, response, offset),
        hypergradient=partial(_map_affinely, curvature, linear),
        kappa_x=float(of_phi[-1] / of_phi[0]),
        kappa_y=float(of_g[-1] / of_g[0]),
        ratio=r,
    )


@dataclass(frozen=True)
class _Losses:
    """``g`` and ``f`` of :func:`worst_case`, and with ``a = b_0 = L_xy = c = 0`` of :func:`simple_worst_case`."""

    a: float
    b0: float
    mu_x: float
    mu_y: float
    L_y: float
    L_xy: float
    t: float
    b: Tensor
    c: Tensor

    def inner(self, x: Tensor, y: Tensor, _: object) -> Tensor:
        z = _apply_z(y)  # y'Z^2 y = |Zy|^2
        return self.b0 / 2 * z.dot(z) + self.mu_y / 2 * y.dot(y) - self.t / 2 * x.dot(z) + self.b.dot(y)

    def outer(self, x: Tensor, y: Tensor, _: object) -> Tensor:
        zx, zy = _apply_z(x), _apply_z(y)
        own = self.a / 2 * zx.dot(zx) + self.mu_x / 2 * x.dot(x) + self.L_y / 2 * y.dot(y)
        return own - self.a * self.b0 / self.t * zx.dot(_apply_z(zy)) + self.L_xy / 2 * x.dot(zy) + self.c.dot(y)


def _find_decay(q: float) -> float:
    """Return the root below 1 of ``r + 1/r = 2 + q``, without cancellation."""
    return 2 / (2 + q + math.sqrt((2 + q) ** 2 - 4))


def _place_entries(size: int, *entries: float) -> Tensor:
    """Return ``[size]`` with these first entries, and zeros."""
    vector = torch.zeros(size, dtype=torch.float64)
    vector[: len(entries)] = torch.tensor(entries, dtype=torch.float64)
    return vector


def _map_affinely(matrix: Tensor, offset: Tensor, x: Tensor) -> Tensor:
    return matrix @ x + offset


def _apply_z(v: Tensor) -> Tensor:
    """``Z v`` for ``v`` ``[d, ...]``: ``(Zv)_i = v_{d-1-i} - v_{d-i}``."""
    return (v - torch.cat([v[1:], torch.zeros_like(v[:1])])).flip(0)


def _apply_z_twice(v: Tensor) -> Tensor:
    """``Z^2 v``."""
    return _apply_z(_apply_z(v))


def _invert_z(v: Tensor) -> Tensor:
    """``Z^-1 v``: the running sum, reversed."""
    return v.cumsum(0).flip(0)
