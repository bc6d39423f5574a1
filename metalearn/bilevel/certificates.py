"""How wrong a hypergradient can be, told from its residuals.

With ``r_1 = |grad_y g(x, y)|`` and ``r_2 = |H v - grad_y f|`` at the computed ``y`` and ``v``,

    |G - grad Phi(x)| <= L_fxy e + rho_J e |v| + L_xy (r_2 + (L_fyy + rho_H |v|) e) / mu,    e = r_1 / mu,

from ``|y - y*| <= e``, ``H(y*) (v - v*) = (H(y*) - H(y)) v + (H(y) v - grad_y f(y)) + (grad_y f(y) - grad_y f(y*))`` and
``J(y) v - J(y*) v* = (J(y) - J(y*)) v + J(y*) (v - v*)`` (in the manner of Ehrhardt and Roberts 2023, arXiv 2301.04764).
It is loose by up to the condition number of ``g``; :func:`certify` spends oracle calls on a better point to make it sharp.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.linalg import vector_norm

from metalearn.bilevel.oracles import Oracles
from metalearn.bilevel.problem import Constants
from metalearn.bilevel.solvers.linear import CG
from metalearn.bilevel.streams import Fixed
from metalearn.errors import ConfigError

__all__ = ["NEEDED", "Certificate", "error_bound", "sharpen"]

NEEDED = ("mu", "L_xy", "L_fxy", "L_fyy", "rho_J", "rho_H")
"""The constants that the bound is made of."""


ROUNDING = 8.0
"""Units in the last place that a computed residual may be wrong by, relative to what it is the difference of."""


class Certificate(NamedTuple):
    """Bounds on ``|G - grad Phi(x)|``, each ``[]``, or ``[B]`` where each problem has its own ``x``.

    Attributes:
        upper: the error is at most this.
        lower: the error is at least this.

    Example:
        >>> import torch
        >>> from metalearn.bilevel import Exact, GradientDescent, certify, hypergradient, quadratic
        >>> problem = quadratic(size=5, outer_size=3, kappa=10.0, seed=0).problem
        >>> x = torch.ones(3, dtype=torch.float64)
        >>> estimator = Exact(inner=GradientDescent(step_size=1.0, steps=20))
        >>> bounds = certify(problem, x, hypergradient(problem, x, estimator=estimator))
        >>> bool(bounds.upper <= 3 * bounds.lower)
        True
    """

    upper: Tensor
    lower: Tensor


def error_bound(constants: Constants, y: Tensor, v: Tensor, inner: Tensor, dual: Tensor) -> Tensor:
    """The bound of the module's docstring for each problem, ``[]`` or ``[B]``, with room for the rounding of both residuals.

    Args:
        constants: the problem's constants, which must have those in :data:`NEEDED`. Rounding is that of ``L``, of
            ``L_upper``, or of ``mu`` where both are unknown.
        y: the inner point, ``[D]`` or ``[B, D]``.
        v: the solution of the linear system, ``[D]`` or ``[B, D]``.
        inner: the inner residual ``r_1``, ``[]`` or ``[B]``.
        dual: the dual residual ``r_2``, ``[]`` or ``[B]``.

    Example:
        >>> import torch
        >>> from metalearn.bilevel import error_bound, quadratic
        >>> constants = quadratic(size=5, outer_size=3, kappa=10.0, seed=0).constants
        >>> y = v = torch.ones(5, dtype=torch.float64)
        >>> small, large = (error_bound(constants, y, v, r, r) for r in torch.tensor([0.001, 0.1]))
        >>> bool(small < large)
        True
    """
    mu, l_xy, l_fxy, l_fyy, rho_j, rho_h = constants.need("a certificate", *NEEDED)
    length, digits = vector_norm(v, dim=-1), ROUNDING * torch.finfo(v.dtype).eps
    smooth = constants.L or constants.L_upper or mu
    distance = (inner + digits * smooth * vector_norm(y, dim=-1)) / mu
    missed = dual + digits * smooth * length
    bound = distance * (l_fxy + rho_j * length) + l_xy / mu * (missed + distance * (l_fyy + rho_h * length))
    return bound + digits * l_xy * length


def sharpen(
    oracles: Oracles, x: Tensor, y: Tensor, v: Tensor | None, value: Tensor, rounds: int = 50, iterations: int = 8
) -> Certificate:
    """Bounds whose ratio is at most 3, unless the rounds or the digits end before.

    For a better point ``(y', v')`` with the hypergradient ``G'`` and the bound ``b'``, the error of ``G`` is within ``b'`` of
    ``|G - G'|``; each round takes a Newton step in ``y``, both systems by conjugate gradients, until ``b' <= |G - G'|/2``. It
    holds for any estimator's ``G``.

    Args:
        oracles: of a deterministic problem.
        x: the outer point.
        y: the computed inner point.
        v: the computed dual, or ``None``.
        value: the hypergradient ``G`` whose error is asked for.
        rounds: at most so many.
        iterations: of conjugate gradients, for each system in each round.

    Raises:
        ConfigError: the problem is stochastic, or a constant is unknown.
    """
    problem = oracles.problem
    if not (problem.stream is None or isinstance(problem.stream, Fixed)):
        raise ConfigError(
            f"the problem draws batches from {type(problem.stream).__name__}, but a certificate is for a "
            "deterministic one; use with_batch(...) on all the data"
        )
    constants = oracles.constants(x)
    constants.need("a certificate", *NEEDED)
    solver = CG(iterations=iterations)
    inner, outer = oracles.sample("inner", 0), oracles.sample("outer", 0)
    best: Certificate | None = None
    for _ in range(rounds):
        here = oracles.linearize(x, y, inner)
        y = y - solver.solve(here.hvp, here.residual).v
        there = oracles.linearize(x, y, inner)
        gradient = oracles.outer_gradient(x, y, outer)
        v, dual, *_ = solver.solve(there.hvp, gradient.of_y, v)
        better = (gradient.of_x + there.pull_back(v)[0]) / oracles.averages
        bound = error_bound(constants, y, v, vector_norm(there.residual, dim=-1), dual)
        if problem.shared_x:
            bound = bound.mean()
        distance = vector_norm(value - better, dim=-1)
        now = Certificate(distance + bound, (distance - bound).clamp(min=0))
        best = now if best is None else Certificate(*_tighten(best, now))
        if bool((bound <= distance / 2).all()):
            break
    assert best is not None
    return best


def _tighten(a: Certificate, b: Certificate) -> tuple[Tensor, Tensor]:
    return torch.minimum(a.upper, b.upper), torch.maximum(a.lower, b.lower)
