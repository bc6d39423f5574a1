"""Multi-step MAML: inner and outer step sizes, and how smooth its meta-objective is.

All bounds are of one task with the meta-objective ``F(w) = l_Q(w_N)``, ``w_{j+1} = w_j - a grad l_S(w_j)`` and ``w_0 = w``. The
Hessians of both losses have eigenvalues from ``mu`` to ``L``. Without ``mu`` they may lie anywhere from ``-L`` to ``L``.
"""

from __future__ import annotations

from metalearn.checks import check_number, check_whole
from metalearn.errors import ConfigError
from metalearn.theory.checks import check_least_zero, check_positive
from metalearn.theory.powers import raise_to, sum_powers

__all__ = [
    "gradient_factor",
    "inner_growth",
    "maml_divergence_step",
    "maml_inner_step",
    "meta_smoothness",
    "outer_step",
]


def maml_inner_step(*, L: float, steps: int) -> float:
    """Compute the inner step size for which the convergence of multi-step MAML is proved.

    ``1/(8 N L)``

    ``N`` inner steps stretch a distance by at most ``e^(1/8)`` then, whatever ``N`` is. It is a guarantee for every loss of
    smoothness ``L``, and far below the step size that does best on most data.

    Source: Ji, Yang and Liang 2022 (arXiv 2002.07836), theorems on both cases: the constant 8 is recalled.

    Args:
        L: the smoothness of the support loss, the largest absolute eigenvalue of its Hessian.
        steps: the number of inner steps ``N``.

    Raises:
        ConfigError: ``L`` or ``steps`` is out of range.

    Example:
        >>> from metalearn.theory import maml_inner_step
        >>> maml_inner_step(L=2.0, steps=5)
        0.0125
    """
    _check("maml_inner_step", L, steps)
    return 1 / (8 * steps * L)


def inner_growth(*, L: float, step_size: float, steps: int, mu: float | None = None) -> float:
    """Bound the factor by which inner steps can stretch the distance between two starts.

    ``q^N`` with ``q = max(|1 - a mu|, |1 - a L|)``

    It is ``(1 + a L)^N`` where nothing is known of ``mu``. It bounds the norm of ``prod_j (I - a H_j)`` too, so that the
    meta-gradient is at most this factor times the query gradient.

    Source: Ji, Yang and Liang 2022 (arXiv 2002.07836); the form with mu is derived here.

    Args:
        L: the smoothness of the support loss.
        step_size: the inner step size ``a``.
        steps: the number of inner steps ``N``.
        mu: the least eigenvalue of its Hessian, which may be negative; ``None`` for ``-L``.

    Raises:
        ConfigError: a constant is out of range, or they contradict one another.

    Example:
        >>> from metalearn.theory import inner_growth
        >>> inner_growth(L=1.0, step_size=0.5, steps=2), inner_growth(L=1.0, step_size=0.5, steps=2, mu=0.0)
        (2.25, 1.0)
    """
    _check("inner_growth", L, steps)
    return raise_to(_read_rate("inner_growth", L, step_size, mu), steps)


def gradient_factor(*, L: float, rho: float, step_size: float, steps: int, mu: float | None = None) -> float:
    """Bound how much each unit of the gradient's norm adds to the smoothness of the meta-objective.

    ``C = rho a q^(2N-1) (1 + q + ... + q^(N-1))`` with ``q = max(|1 - a mu|, |1 - a L|)``

    It is ``(rho/L) (1 + a L)^(2N-1) ((1 + a L)^N - 1)`` where nothing is known of ``mu``. Support and query loss are alike in it.

    Source: Ji, Yang and Liang 2022 (arXiv 2002.07836), for the form; the constant is derived here.

    Args:
        L: the smoothness of the loss.
        rho: the Lipschitz constant of its Hessian.
        step_size: the inner step size ``a``.
        steps: the number of inner steps ``N``.
        mu: the least eigenvalue of its Hessian, which may be negative; ``None`` for ``-L``.

    Raises:
        ConfigError: a constant is out of range, or they contradict one another.

    Example:
        >>> from metalearn.theory import gradient_factor
        >>> gradient_factor(L=1.0, rho=1.0, step_size=1.0, steps=2)
        24.0
    """
    _check("gradient_factor", L, steps)
    check_least_zero("gradient_factor", rho=rho)
    q = _read_rate("gradient_factor", L, step_size, mu)
    return rho * step_size * raise_to(q, 2 * steps - 1) * sum_powers(q, steps) if rho * step_size else 0.0


def meta_smoothness(
    *,
    L: float,
    rho: float,
    step_size: float,
    steps: int,
    gradient: float,
    query_gradient: float | None = None,
    mu: float | None = None,
) -> float:
    """Bound the smoothness of the meta-objective of one task, as seen from a point ``w``.

    ``L_w = q^(2N) L + C |grad l(w)|`` with ``C`` of :func:`gradient_factor` and ``q = max(|1 - a mu|, |1 - a L|)``

    ``|grad F(w) - grad F(u)| <= L_w |w - u|`` for every ``u``. It grows with the gradient, so that no single number bounds it
    everywhere. Where the query loss is another one, the second term is
    ``rho a q^(N-1) S (|grad l_Q(w)| + a L S |grad l_S(w)|)`` with ``S = 1 + q + ... + q^(N-1)``.

    Source: Ji, Yang and Liang 2022 (arXiv 2002.07836), for the form; the constants are derived here.

    Args:
        L: the smoothness of both losses.
        rho: the Lipschitz constant of the support loss's Hessian; 0 for a quadratic.
        step_size: the inner step size ``a``.
        steps: the number of inner steps ``N``.
        gradient: the norm of the support loss's gradient at ``w``.
        query_gradient: the norm of the query loss's gradient at ``w``; ``None`` where both losses are the same.
        mu: the least eigenvalue of the Hessians, which may be negative; ``None`` for ``-L``.

    Raises:
        ConfigError: a constant is out of range, or they contradict one another.

    Example:
        >>> from metalearn.theory import meta_smoothness
        >>> meta_smoothness(L=1.0, rho=0.0, step_size=0.5, steps=2, gradient=3.0)
        5.0625
        >>> meta_smoothness(L=1.0, rho=0.0, step_size=0.5, steps=2, gradient=3.0, mu=0.0)
        1.0
    """
    _check("meta_smoothness", L, steps)
    check_least_zero("meta_smoothness", rho=rho, gradient=gradient)
    q = _read_rate("meta_smoothness", L, step_size, mu)
    of_hessian = raise_to(q, 2 * steps) * L
    if query_gradient is not None:
        check_least_zero("meta_smoothness", query_gradient=query_gradient)
    if not rho * step_size * (gradient + (query_gradient or 0)):
        return of_hessian
    total = sum_powers(q, steps)
    if query_gradient is None:
        reached = raise_to(q, steps) * gradient
    else:
        reached = query_gradient + (step_size * L * total * gradient if gradient else 0)
    return of_hessian + rho * step_size * raise_to(q, steps - 1) * total * reached


def outer_step(*, smoothness: float, factor: float = 1.0) -> float:
    """Compute the outer step size with which a step on the meta-objective lowers it.

    ``1/(C L_w)``

    With the exact meta-gradient, a step lowers the meta-objective by at least ``|grad F|^2/(2 C L_w)``. The thesis takes a larger
    ``C``, and an estimate of ``L_w`` from a batch of tasks.

    Source: Ji, Yang and Liang 2022 (arXiv 2002.07836), for the form.

    Args:
        smoothness: ``L_w`` of :func:`meta_smoothness`, or its mean over tasks.
        factor: ``C``, at least 1.

    Raises:
        ConfigError: an argument is out of range.

    Example:
        >>> from metalearn.theory import outer_step
        >>> outer_step(smoothness=5.0, factor=2.0)
        0.1
    """
    check_positive("outer_step", smoothness=smoothness)
    check_number("factor", factor, "use 1.0", least=1, owner="outer_step", loose=True)
    return 1 / (factor * smoothness)


def maml_divergence_step(*, L: float, steps: int, outer_step_size: float, mu: float | None = None) -> float:
    """Compute the inner step size above which training diverges, on quadratic tasks.

    ``min((1 + R)/L, (R - 1)/|mu|)`` with ``R = (2/(b L))^(1/(2N))``; the second term for ``mu < 0`` alone

    Plain gradient descent of step size ``b`` on the meta-objective diverges where ``b q^(2N) L`` is above 2. For convex tasks the
    boundary is near ``2/L`` for every ``N``. Where negative curvature is possible it falls as ``ln(2/(b L))/(2 N L)``, so the
    step size must fall as ``1/N``. The worst task of each kind attains it.

    Source: derived here.

    Args:
        L: the smoothness of both losses.
        steps: the number of inner steps ``N``.
        outer_step_size: the outer step size ``b``, below ``2/L``.
        mu: the least eigenvalue of the Hessians, which may be negative; ``None`` for ``-L``.

    Raises:
        ConfigError: a constant is out of range, or ``b`` is so large that training diverges without inner steps.

    Example:
        >>> from metalearn.theory import maml_divergence_step
        >>> maml_divergence_step(L=1.0, steps=1, outer_step_size=0.5, mu=0.0)
        3.0
        >>> maml_divergence_step(L=1.0, steps=1, outer_step_size=0.5)
        1.0
    """
    _check("maml_divergence_step", L, steps)
    check_positive("maml_divergence_step", outer_step_size=outer_step_size)
    least = _read_least("maml_divergence_step", L, mu)
    if outer_step_size >= 2 / L:
        raise ConfigError(
            f"maml_divergence_step(outer_step_size={outer_step_size:g}) is not below 2/L = {2 / L:g}, but above it training "
            f"diverges without inner steps; use {1 / L:g}"
        )
    root = (2 / (outer_step_size * L)) ** (1 / (2 * steps))
    largest = (1 + root) / L
    return min(largest, (root - 1) / -least) if least < 0 else largest


def _check(owner: str, L: float, steps: int) -> None:
    check_positive(owner, L=L)
    check_whole("steps", steps, 1, owner=owner)


def _read_least(owner: str, L: float, mu: float | None) -> float:
    """The least eigenvalue of a Hessian, of which no absolute value is above ``L``."""
    if mu is None:
        return -L
    check_number("mu", mu, "leave it None if unknown", owner=owner, loose=True)
    if abs(mu) > L * (1 + 1e-9):
        raise ConfigError(f"{owner}(mu={mu:g}), but it must be from -L to L, with L = {L:g}; leave it None if unknown")
    return float(mu)


def _read_rate(owner: str, L: float, step_size: float, mu: float | None) -> float:
    """``q``: by how much a step can stretch a distance."""
    check_least_zero(owner, step_size=step_size)
    return max(abs(1 - step_size * _read_least(owner, L, mu)), abs(1 - step_size * L))
