"""Step sizes and numbers of steps from the problem's constants, by the rules of the thesis (arXiv 2108.00330)."""

from __future__ import annotations

import math
from typing import NamedTuple

from metalearn.bilevel.problem import Constants
from metalearn.errors import ConfigError

__all__ = ["MomentumStep", "extrapolation", "heavy_ball", "inner_steps", "nesterov", "smoothness_of_phi"]


class MomentumStep(NamedTuple):
    """A step size and a momentum."""

    step_size: float
    momentum: float


def smoothness_of_phi(constants: Constants) -> float:
    """``L_Phi``: that of the constants, or a bound.

    Of a quadratic ``g`` (``rho_J = rho_H = 0``) ``L_fxx + 2 L_fxy L_xy/mu + L_fyy L_xy^2/mu^2``; else, with ``L`` for every first
    Lipschitz constant, ``L + (2 L^2 + rho_J M)/mu + (rho_H L M + L^3 + rho_J M L)/mu^2 + rho_H L^2 M/mu^3``: that of ``J v*``
    with ``|v*| <= M/mu``, where ``y*`` has ``L/mu`` and ``v*`` has ``(L + rho_H M/mu)(1 + L/mu)/mu``. Lemma 2.1 there prints
    ``rho_J M^2`` for ``rho_J M``, which is of another unit in ``f`` and too small where ``M < 1``. Here ``rho_J`` and ``rho_H``
    are Lipschitz constants in ``x`` and ``y`` together, not in ``y`` alone, and ``g`` is quadratic in both.

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
    if constants.rho_J == 0 and constants.rho_H == 0 and constants.knows("mu", "L_xy", "L_fxx", "L_fxy", "L_fyy"):
        mu, l_xy, l_fxx, l_fxy, l_fyy = constants.need("L_phi", "mu", "L_xy", "L_fxx", "L_fxy", "L_fyy")
        return l_fxx + 2 * l_fxy * l_xy / mu + l_fyy * (l_xy / mu) ** 2
    mu, smooth, m, rho_j, rho_h = constants.need("L_phi", "mu", "L", "M", "rho_J", "rho_H")
    return (
        smooth
        + (2 * smooth**2 + rho_j * m) / mu
        + (rho_h * smooth * m + smooth**3 + rho_j * m * smooth) / mu**2
        + rho_h * smooth**2 * m / mu**3
    )


def nesterov(mu: float, L: float) -> MomentumStep:
    """``1/L`` and ``(sqrt(k) - 1)/(sqrt(k) + 1)`` with ``k = L/mu``.

    Example:
        >>> from metalearn.bilevel import nesterov
        >>> nesterov(mu=0.25, L=4.0)
        MomentumStep(step_size=0.25, momentum=0.6)
    """
    return MomentumStep(1 / L, extrapolation(mu, L))


def extrapolation(mu: float, L: float) -> float:
    """``(sqrt(k) - 1)/(sqrt(k) + 1)`` with ``k = L/mu``."""
    root = math.sqrt(max(1.0, L / mu))
    return (root - 1) / (root + 1)


def heavy_ball(mu: float, L: float) -> MomentumStep:
    """``a = 4/(sqrt(L) + sqrt(mu))^2`` and ``max((1 - sqrt(a mu))^2, (1 - sqrt(a L))^2)`` (Polyak 1964).

    Example:
        >>> from metalearn.bilevel import heavy_ball
        >>> heavy_ball(mu=1.0, L=9.0)
        MomentumStep(step_size=0.25, momentum=0.25)
    """
    step = 4 / (math.sqrt(L) + math.sqrt(mu)) ** 2
    return MomentumStep(step, max((1 - math.sqrt(step * mu)) ** 2, (1 - math.sqrt(step * L)) ** 2))


def inner_steps(contraction: float, factor: float) -> int:
    """How many steps that contract by ``contraction`` make an error ``factor`` times smaller."""
    if not 0 <= contraction < 1 or not factor >= 1:
        raise ConfigError(
            f"inner_steps(contraction={contraction}, factor={factor}), but the contraction must be from 0 to below 1 "
            "and the factor at least 1; check mu and L"
        )
    return 1 if contraction == 0 else max(1, math.ceil(math.log(factor) / -math.log(contraction)))
