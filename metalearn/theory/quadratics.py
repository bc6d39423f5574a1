"""How fast inner and linear solvers contract, exactly on quadratics."""

from __future__ import annotations

import math

from metalearn.bilevel.checks import check_order
from metalearn.checks import check_whole
from metalearn.theory.checks import check_positive, read_kappa
from metalearn.theory.powers import raise_to

__all__ = [
    "accelerated_contraction",
    "best_step",
    "cg_error",
    "contraction",
    "heavy_ball_contraction",
    "inner_step_limit",
]


def inner_step_limit(*, L: float) -> float:
    """Compute the step size from which gradient descent diverges.

    ``2/L``

    It is exact where the loss is a quadratic, for any number of steps. With few steps a run may still be useful beyond it.

    Source: exact for a quadratic (Polyak 1987).

    Args:
        L: the smoothness of the loss, its Hessian's largest eigenvalue.

    Raises:
        ConfigError: ``L`` is not above 0.

    Example:
        >>> from metalearn.theory import inner_step_limit
        >>> inner_step_limit(L=4.0)
        0.5
    """
    check_positive("inner_step_limit", L=L)
    return 2 / L


def contraction(*, mu: float, L: float, step_size: float, steps: int = 1) -> float:
    """Compute the factor by which steps of gradient descent shrink the distance to the solution.

    ``max(|1 - a mu|, |1 - a L|)^N``

    It is exact for a quadratic, where ``N`` steps multiply the distance by ``(I - a A)^N``. It is a bound for any loss whose
    Hessian has eigenvalues from ``mu`` to ``L``. The gradient of an initial head shrinks by it too.

    Source: exact for a quadratic (Polyak 1987); thesis arXiv 2108.00330, chapter 2.

    Args:
        mu: the strong convexity of the loss.
        L: the smoothness of the loss.
        step_size: the step size ``a``.
        steps: the number of steps ``N``.

    Raises:
        ConfigError: a constant is out of range, or ``mu`` is above ``L``.

    Example:
        >>> from metalearn.theory import contraction
        >>> contraction(mu=1.0, L=4.0, step_size=0.25, steps=2)
        0.5625
    """
    check_order("contraction", mu, L)
    check_positive("contraction", step_size=step_size)
    check_whole("steps", steps, 1, owner="contraction")
    return raise_to(max(abs(1 - step_size * mu), abs(1 - step_size * L)), steps)


def best_step(*, mu: float, L: float) -> float:
    """Compute the step size with which gradient descent contracts fastest.

    ``2/(L + mu)``

    A step contracts by ``(k - 1)/(k + 1)`` then, with ``k = L/mu``.

    Source: Polyak 1987; thesis arXiv 2108.00330, theorem 4.1 (stocBiO).

    Args:
        mu: the strong convexity of the loss.
        L: the smoothness of the loss.

    Raises:
        ConfigError: a constant is not above 0, or ``mu`` is above ``L``.

    Example:
        >>> from metalearn.theory import best_step
        >>> best_step(mu=1.0, L=3.0)
        0.5
    """
    check_order("best_step", mu, L)
    return 2 / (L + mu)


def accelerated_contraction(*, kappa: float | None = None, mu: float | None = None, L: float | None = None) -> float:
    """Bound the factor by which a step of Nesterov's method shrinks the error, in the long run.

    ``sqrt(1 - 1/sqrt(k))``

    After ``N`` steps the distance to the solution is at most the first one times ``sqrt(1 + k)`` times the ``N``-th power of
    this factor.
    Outer steps of AccBiO contract alike, with the condition number ``L_Phi/mu_x``.

    Source: Nesterov 2004, theorem 2.2.3; thesis arXiv 2108.00330, chapter 3.

    Args:
        kappa: the condition number ``k``; left out where ``mu`` and ``L`` are there.
        mu: the strong convexity of the loss.
        L: the smoothness of the loss.

    Raises:
        ConfigError: no condition number follows from the arguments, or they contradict one another.

    Example:
        >>> from metalearn.theory import accelerated_contraction
        >>> round(accelerated_contraction(mu=0.25, L=4.0) ** 2, 6)
        0.75
    """
    return math.sqrt(1 - read_kappa("accelerated_contraction", kappa, mu, L) ** -0.5)


def heavy_ball_contraction(*, kappa: float | None = None, mu: float | None = None, L: float | None = None) -> float:
    """Compute the factor by which a step of Polyak's heavy ball shrinks the error, in the long run.

    ``(sqrt(k) - 1)/(sqrt(k) + 1)``

    It is the spectral radius of a step on a quadratic. Early steps may grow. AccBiO solves its linear system by it.

    Source: Polyak 1964; thesis arXiv 2108.00330, chapter 3.

    Args:
        kappa: the condition number ``k``; left out where ``mu`` and ``L`` are there.
        mu: the strong convexity of the loss.
        L: the smoothness of the loss.

    Raises:
        ConfigError: no condition number follows from the arguments, or they contradict one another.

    Example:
        >>> from metalearn.theory import heavy_ball_contraction
        >>> heavy_ball_contraction(kappa=9.0)
        0.5
    """
    root = math.sqrt(read_kappa("heavy_ball_contraction", kappa, mu, L))
    return (root - 1) / (root + 1)


def cg_error(*, iterations: int, kappa: float | None = None, mu: float | None = None, L: float | None = None) -> float:
    """Bound the error of conjugate gradients relative to the first one, in the norm of the matrix.

    ``2 ((sqrt(k) - 1)/(sqrt(k) + 1))^N``

    It is 0 after as many iterations as the matrix has distinct eigenvalues, which this bound does not know.

    Source: Saad 2003, section 6.11.3; thesis arXiv 2108.00330, chapter 2.

    Args:
        iterations: the number of iterations ``N``.
        kappa: the condition number ``k``; left out where ``mu`` and ``L`` are there.
        mu: the least eigenvalue of the matrix.
        L: the largest eigenvalue of the matrix.

    Raises:
        ConfigError: no condition number follows from the arguments, or they contradict one another.

    Example:
        >>> from metalearn.theory import cg_error
        >>> cg_error(iterations=3, kappa=9.0)
        0.25
    """
    check_whole("iterations", iterations, 0, owner="cg_error")
    return min(1.0, 2 * heavy_ball_contraction(kappa=read_kappa("cg_error", kappa, mu, L)) ** iterations)
