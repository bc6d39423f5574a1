"""Step sizes and numbers of steps from the problem's constants, by the rules of the thesis (arXiv 2108.00330)."""

from __future__ import annotations

import math
from typing import NamedTuple

from metalearn.bilevel.checks import check_order
from metalearn.bilevel.problem import Constants
from metalearn.checks import check_number

__all__ = ["MomentumStep", "extrapolation", "heavy_ball", "inner_steps", "nesterov", "smoothness_of_phi"]


class MomentumStep(NamedTuple):
    """A step size and a momentum."""

    step_size: float
    momentum: float


def smoothness_of_phi(constants: Constants) -> float:
    """Bound the smoothness of ``Phi``, where the constants do not have it.

    ``L_Phi = L_fxx + 2 L_fxy l + L_fyy l^2 + (1 + l)(rho_J + rho_H l) M/mu`` with ``l = L_xy/mu``

    Here ``y*`` has the Lipschitz constant ``l``, and ``|v*| <= M/mu``. ``rho_J`` and ``rho_H`` are Lipschitz constants in ``x``
    and ``y`` together. ``L`` stands for each of ``L_xy``, ``L_fxx``, ``L_fxy`` and ``L_fyy`` that is unknown, so it must bound
    these too. ``M`` is not needed where ``rho_J = rho_H = 0``.

    With ``L`` for all of them it is ``L + (2 L^2 + rho_J M)/mu + (rho_H L M + L^3 + rho_J M L)/mu^2 + rho_H L^2 M/mu^3``. Lemma
    2.1 of the thesis prints ``rho_J M^2`` for ``rho_J M``, which is of another unit in ``f`` and too small where ``M < 1``.

    Source: thesis arXiv 2108.00330, lemma 2.1, for the form; the constant is derived here.

    Args:
        constants: the problem's constants. ``mu``, ``rho_J`` and ``rho_H`` must be known, and ``L`` where one is left out.

    Raises:
        ConfigError: a constant is unknown.

    Example:
        >>> from metalearn.bilevel import Constants, smoothness_of_phi
        >>> known = Constants(mu=0.5, L_xy=1.0, rho_J=0.0, rho_H=0.0, L_fxx=1.0, L_fxy=0.0, L_fyy=1.0)
        >>> smoothness_of_phi(known)
        5.0
    """
    if constants.L_phi is not None:
        return constants.L_phi
    parts = ("L_xy", "L_fxx", "L_fxy", "L_fyy")
    if constants.L is None:
        mu, rho_j, rho_h, *_ = constants.need("L_phi", "mu", "rho_J", "rho_H", *parts)
    else:
        mu, rho_j, rho_h = constants.need("L_phi", "mu", "rho_J", "rho_H")
    values = (getattr(constants, name) for name in parts)
    l_xy, l_fxx, l_fxy, l_fyy = (float(constants.L if value is None else value) for value in values)  # type: ignore[arg-type]
    response = l_xy / mu
    of_quadratic = l_fxx + 2 * l_fxy * response + l_fyy * response**2
    if rho_j == rho_h == 0:
        return of_quadratic
    (largest,) = constants.need("L_phi", "M")
    return of_quadratic + (1 + response) * (rho_j + rho_h * response) * largest / mu


def nesterov(mu: float, L: float) -> MomentumStep:
    """Compute the step size and the momentum of Nesterov's method.

    ``a = 1/L`` and ``m = (sqrt(k) - 1)/(sqrt(k) + 1)`` with ``k = L/mu``

    Source: Nesterov 2004, (2.2.22).

    Args:
        mu: the strong convexity of the loss.
        L: the smoothness of the loss.

    Raises:
        ConfigError: a constant is not above 0, or ``mu`` is above ``L``.

    Example:
        >>> from metalearn.bilevel import nesterov
        >>> nesterov(mu=0.25, L=4.0)
        MomentumStep(step_size=0.25, momentum=0.6)
    """
    check_order("nesterov", mu, L)
    return MomentumStep(1 / L, extrapolation(mu, L))


def extrapolation(mu: float, L: float) -> float:
    """``(sqrt(k) - 1)/(sqrt(k) + 1)`` with ``k = L/mu``."""
    root = math.sqrt(max(1.0, L / mu))
    return (root - 1) / (root + 1)


def heavy_ball(mu: float, L: float) -> MomentumStep:
    """Compute the step size and the momentum of Polyak's heavy ball.

    ``a = 4/(sqrt(L) + sqrt(mu))^2`` and ``m = max((1 - sqrt(a mu))^2, (1 - sqrt(a L))^2)``

    Source: Polyak 1964.

    Args:
        mu: the strong convexity of the loss.
        L: the smoothness of the loss.

    Raises:
        ConfigError: a constant is not above 0, or ``mu`` is above ``L``.

    Example:
        >>> from metalearn.bilevel import heavy_ball
        >>> heavy_ball(mu=1.0, L=9.0)
        MomentumStep(step_size=0.25, momentum=0.25)
    """
    check_order("heavy_ball", mu, L)
    step = 4 / (math.sqrt(L) + math.sqrt(mu)) ** 2
    return MomentumStep(step, max((1 - math.sqrt(step * mu)) ** 2, (1 - math.sqrt(step * L)) ** 2))


def inner_steps(contraction: float, factor: float) -> int:
    """Compute how many steps make an error smaller by a factor.

    ``ceil(ln(F)/-ln(q))``, at least 1

    Source: derived here, from the contraction of a step.

    Args:
        contraction: the factor ``q`` by which a step shrinks the error, from 0 to below 1.
        factor: the factor ``F`` by which the error must shrink, at least 1.

    Raises:
        ConfigError: a factor is out of range.

    Example:
        >>> from metalearn.bilevel import inner_steps
        >>> inner_steps(contraction=0.5, factor=1000.0)
        10
    """
    check_number(
        "contraction", contraction, "use 0.5, or check mu and L", least=0, below=1, owner="inner_steps", loose=True
    )
    check_number("factor", factor, "use 10.0", least=1, owner="inner_steps", loose=True)
    return 1 if contraction == 0 else max(1, math.ceil(math.log(factor) / -math.log(contraction)))
