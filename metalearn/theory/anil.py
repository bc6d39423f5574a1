"""ANIL: inner step sizes for the two geometries of the head's loss."""

from __future__ import annotations

import math

from metalearn.bilevel.checks import check_order
from metalearn.checks import check_whole
from metalearn.theory.checks import check_positive, read_kappa

__all__ = ["anil_contraction", "anil_convex_step", "anil_nonconvex_step"]


def anil_convex_step(*, mu: float, L: float) -> float:
    """Compute the inner step size for ANIL with a strongly convex loss of the head.

    ``mu/L^2``

    It is small, and :func:`~metalearn.theory.best_step` contracts faster. For ``L/mu = 10`` a step shrinks the distance to 0.990
    of it, and with the other one to 0.818.

    Source: Ji, Lee, Liang and Poor 2020 (arXiv 2006.09486), theorem on the strongly convex case: recalled.

    Args:
        mu: the strong convexity of the head's loss.
        L: the smoothness of the head's loss.

    Raises:
        ConfigError: a constant is not above 0, or ``mu`` is above ``L``.

    Example:
        >>> from metalearn.theory import anil_convex_step
        >>> anil_convex_step(mu=1.0, L=2.0)
        0.25
    """
    check_order("anil_convex_step", mu, L)
    return mu / L**2


def anil_contraction(*, kappa: float | None = None, mu: float | None = None, L: float | None = None) -> float:
    """Bound the factor by which a step of size ``mu/L^2`` shrinks the head's distance to its solution.

    ``sqrt(1 - 1/k^2)``

    It is the square root of ``1 - 2 a mu + a^2 L^2``, which that step size minimises. Where the loss has a Hessian, a step
    contracts a little faster, by ``1 - 1/k^2``.

    Source: derived here, from strong convexity and smoothness alone.

    Args:
        kappa: the condition number ``k`` of the head's loss; left out where ``mu`` and ``L`` are there.
        mu: the strong convexity of the head's loss.
        L: the smoothness of the head's loss.

    Raises:
        ConfigError: no condition number follows from the arguments, or they contradict one another.

    Example:
        >>> from metalearn.theory import anil_contraction
        >>> round(anil_contraction(kappa=10.0), 3)
        0.995
    """
    return math.sqrt(1 - read_kappa("anil_contraction", kappa, mu, L) ** -2)


def anil_nonconvex_step(*, L: float, steps: int) -> float:
    """Compute the inner step size for ANIL with a nonconvex loss of the head, up to a constant.

    ``1/(N L)``

    ``N`` steps stretch a distance by less than ``e`` then, whatever ``N`` is. The source says the order alone.

    Source: Ji, Lee, Liang and Poor 2020 (arXiv 2006.09486), theorem on the nonconvex case: the order is recalled.

    Args:
        L: the smoothness of the head's loss.
        steps: the number of inner steps ``N``.

    Raises:
        ConfigError: ``L`` or ``steps`` is out of range.

    Example:
        >>> from metalearn.theory import anil_nonconvex_step
        >>> anil_nonconvex_step(L=2.0, steps=5)
        0.1
    """
    check_positive("anil_nonconvex_step", L=L)
    check_whole("steps", steps, 1, owner="anil_nonconvex_step")
    return 1 / (steps * L)
