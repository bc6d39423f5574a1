"""Bilevel optimisation: outer step sizes, and the errors of hypergradients."""

from __future__ import annotations

from metalearn.bilevel.checks import check_order
from metalearn.checks import check_whole
from metalearn.errors import ConfigError
from metalearn.theory.checks import check_least_zero, check_positive
from metalearn.theory.powers import raise_to

__all__ = ["bio_outer_step", "itd_bias", "neumann_bias", "pzobo_error"]


def bio_outer_step(*, L_phi: float) -> float:
    """Compute the outer step size of AID-BiO, ITD-BiO and stocBiO.

    ``1/(4 L_Phi)``

    It is a quarter of what exact hypergradients would allow, since theirs are inexact.

    Source: Ji, Yang and Liang 2021 (arXiv 2010.07962), thesis theorems 2.1 and 2.2: the constant 4 is recalled.

    Args:
        L_phi: the smoothness of ``Phi``, see :func:`metalearn.bilevel.smoothness_of_phi`.

    Raises:
        ConfigError: ``L_phi`` is not above 0.

    Example:
        >>> from metalearn.theory import bio_outer_step
        >>> bio_outer_step(L_phi=5.0)
        0.05
    """
    check_positive("bio_outer_step", L_phi=L_phi)
    return 1 / (4 * L_phi)


def itd_bias(*, mu: float, L: float, L_xy: float, gradient: float, step_size: float, steps: int) -> float:
    """Bound the error that ITD keeps on a quadratic, however often it is started warm.

    ``(L_xy/mu) q^D |grad_y f(y*)|`` with ``q = max(|1 - a mu|, |1 - a L|)``

    The error is exactly ``-C'(I - aA)^D A^-1 grad_y f(y*)`` for ``g = y'Ay/2 - y'(Cx + d)``.

    Source: derived here; Ji, Liu, Liang and Ying 2022 show that it does not vanish (arXiv 2205.14224).

    Args:
        mu: the strong convexity of ``g``.
        L: the smoothness of ``g``.
        L_xy: the norm of ``grad_xy g``.
        gradient: the norm of ``grad_y f`` at the solution ``y*``.
        step_size: the inner step size ``a``.
        steps: the number of inner steps ``D``.

    Raises:
        ConfigError: a constant is out of range, or they contradict one another.

    Example:
        >>> from metalearn.theory import itd_bias
        >>> itd_bias(mu=1.0, L=2.0, L_xy=1.0, gradient=1.0, step_size=0.5, steps=3)
        0.125
    """
    check_order("itd_bias", mu, L)
    check_positive("itd_bias", step_size=step_size)
    check_least_zero("itd_bias", L_xy=L_xy, gradient=gradient)
    check_whole("steps", steps, 0, owner="itd_bias")
    error = L_xy / mu * gradient
    return error * raise_to(max(abs(1 - step_size * mu), abs(1 - step_size * L)), steps) if error else 0.0


def neumann_bias(*, mu: float, eta: float, terms: int, gradient: float, L: float | None = None) -> float:
    """Bound the error of the Neumann series of stocBiO for ``H^-1 grad_y f``, in the mean over its batches.

    ``(1/mu) (1 - eta mu)^(Q+1) |grad_y f|``

    The step size ``eta`` must be at most ``1/L``.

    Source: Ji, Yang and Liang 2021 (arXiv 2010.07962); thesis, chapter 4.

    Args:
        mu: the strong convexity of ``g``.
        eta: the step size of the series.
        terms: the number of products ``Q``.
        gradient: the norm of ``grad_y f``.
        L: the smoothness of ``g``; ``None`` to take for granted that ``eta`` is at most ``1/L``.

    Raises:
        ConfigError: a constant is out of range, or they contradict one another.

    Example:
        >>> from metalearn.theory import neumann_bias
        >>> neumann_bias(mu=1.0, eta=0.5, terms=2, gradient=4.0)
        0.5
    """
    check_positive("neumann_bias", mu=mu, eta=eta)
    check_least_zero("neumann_bias", gradient=gradient)
    check_whole("terms", terms, 0, owner="neumann_bias")
    if L is not None:
        check_order("neumann_bias", mu, L)
    largest = mu if L is None else L
    if eta * largest > 1 + 1e-9:
        raise ConfigError(
            f"neumann_bias(eta={eta:g}) is above 1/{'mu' if L is None else 'L'} = {1 / largest:g}, but the series needs less; "
            f"use {1 / largest:g}"
        )
    return (1 - min(1.0, eta * mu)) ** (terms + 1) * gradient / mu


def pzobo_error(*, outer_size: int, directions: int) -> float:
    """Compute the mean squared error of PZOBO's response term, relative to the term squared.

    ``(p + 1)/Q``

    It is exact where the inner steps are affine in ``x``, for every size of the perturbation.

    Source: derived here; the estimator is that of Sow, Ji and Liang 2022 (arXiv 2110.07004).

    Args:
        outer_size: the number ``p`` of entries of ``x``.
        directions: the number ``Q`` of random directions.

    Raises:
        ConfigError: an argument is no whole number of at least 1.

    Example:
        >>> from metalearn.theory import pzobo_error
        >>> pzobo_error(outer_size=9, directions=5)
        2.0
    """
    check_whole("outer_size", outer_size, 1, owner="pzobo_error")
    check_whole("directions", directions, 1, owner="pzobo_error")
    return (outer_size + 1) / directions
