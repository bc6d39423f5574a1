"""The gradient of ``Phi(x) = f(x, y*(x))`` at a point."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from metalearn.bilevel.certificates import NEEDED, Certificate, error_bound, sharpen
from metalearn.bilevel.counts import OracleCounts
from metalearn.bilevel.estimators.aid import AID
from metalearn.bilevel.estimators.base import Estimate, Estimator, is_deterministic
from metalearn.bilevel.oracles import Oracles
from metalearn.bilevel.problem import BilevelProblem
from metalearn.bilevel.trees import Layout, Tree, check_alike
from metalearn.checks import UNBOUNDED, check_flag, check_kind, check_whole, quote_value
from metalearn.errors import ConfigError, ShapeError

__all__ = ["Diagnostics", "Hypergradient", "certify", "certify_from_residuals", "check_problem", "hypergradient"]


class Diagnostics(NamedTuple):
    """What is known of a hypergradient.

    Attributes:
        loss: the outer loss at the inner solution, the mean over problems, ``[]``.
        inner_residual: ``|grad_y g|``, ``[]`` or ``[B]``; ``None`` where the estimator does not evaluate it.
        dual_residual: ``|H v - grad_y f|``, ``[]`` or ``[B]``; ``None`` where the estimator does not evaluate it.
        inner_steps: how many gradients the inner solver took.
        iterations: how many iterations the linear solver took.
        certificate: a bound on the error of the value, ``[]``, or ``[B]`` where each problem has its own ``x``. It is
            ``None`` where residuals or constants are unknown, or data are drawn.
        counts: the oracle calls of this estimate, or all of those that were passed in.

    Example:
        >>> import torch
        >>> from metalearn.bilevel import AID, GradientDescent, hypergradient, quadratic
        >>> problem = quadratic(size=5, outer_size=3, kappa=10.0, seed=0).problem
        >>> estimator = AID(inner=GradientDescent(step_size=1.0, steps=20))
        >>> result = hypergradient(problem, torch.ones(3, dtype=torch.float64), estimator=estimator)
        >>> result.diagnostics.inner_steps, result.diagnostics.counts.gc_f
        (20, 1)
    """

    loss: Tensor
    inner_residual: Tensor | None
    dual_residual: Tensor | None
    inner_steps: int
    iterations: int
    certificate: Tensor | None
    counts: OracleCounts


class Hypergradient(NamedTuple):
    """A hypergradient.

    Attributes:
        value: the hypergradient, a tree like ``x``. For problems that share ``x`` it is the mean.
        inner: where the inner solver ended, a tree like ``y``.
        dual: the solution of ``H v = grad_y f``, a tree like ``y``. The next one may start from it. It is ``None`` for
            ITD and PZOBO.
        diagnostics: residuals, counts, certificate.

    Example:
        >>> import torch
        >>> from metalearn.bilevel import Exact, GradientDescent, hypergradient, quadratic
        >>> made = quadratic(size=5, outer_size=3, kappa=10.0, seed=0)
        >>> estimator = Exact(inner=GradientDescent(step_size=1.0, steps=20))
        >>> result = hypergradient(made.problem, torch.ones(3, dtype=torch.float64), estimator=estimator)
        >>> result.value.shape, result.inner.shape, result.dual.shape
        (torch.Size([3]), torch.Size([5]), torch.Size([5]))
    """

    value: Tree
    inner: Tree
    dual: Tree
    diagnostics: Diagnostics


def hypergradient(
    problem: BilevelProblem,
    x: Tree,
    y: Tree | None = None,
    estimator: Estimator | None = None,
    *,
    dual: Tree | None = None,
    step: int = 0,
    seed: int = 0,
    counts: OracleCounts | None = None,
    sharp: bool = False,
) -> Hypergradient:
    """``grad Phi(x) = grad_x f - J v*``, ``H v* = grad_y f`` at ``y*(x)``, as an estimator finds it.

    Args:
        problem: the problem that is differentiated.
        x: the point at which it is differentiated.
        y: where the inner solver starts, or the inner solution for an estimator without a solver; ``None`` for
            ``init_inner(x)``.
        estimator: how the hypergradient is estimated; ``None`` for ``AID()``, ten iterations of conjugate gradients at
            ``y``.
        dual: where the linear solver starts, a tree like ``y``; ``None`` for 0.
        step: the number of the outer step. With the seed, it says which batches are drawn.
        seed: the seed of every draw.
        counts: is updated with the oracle calls; ``None`` for new counts.
        sharp: whether to spend oracle calls on a certificate within a factor of 3 of the error, as :func:`certify`
            does. Otherwise it is what the residuals at hand give.

    Raises:
        ShapeError: trees that do not fit together, or a loss that is not a scalar.
        ConfigError: a step size outside the stable range of a known ``L``.
        BilevelError: an assumption that the estimator needs does not hold.
        DivergenceError: something is not finite: which term, and at which step.

    Example:
        >>> import torch
        >>> from metalearn.bilevel import AID, BilevelProblem, GradientDescent, hypergradient
        >>> problem = BilevelProblem(
        ...     outer_loss=lambda x, y, batch: (y - 3).square().sum() / 2,
        ...     inner_loss=lambda x, y, batch: (y - x).square().sum() / 2,
        ...     init_inner=torch.zeros_like,
        ... )
        >>> estimator = AID(inner=GradientDescent(step_size=1.0, steps=1))
        >>> result = hypergradient(problem, torch.tensor([1.0]), estimator=estimator)
        >>> result.value  # y* = x, so it is x - 3
        tensor([-2.])
    """
    estimator = AID() if estimator is None else estimator
    check_problem(problem)
    check_estimator(estimator)
    for name, value in (("step", step), ("seed", seed)):
        check_whole(name, value, None, UNBOUNDED, "use 0", owner="hypergradient", loose=True)
    check_flag("sharp", sharp, owner="hypergradient")
    if counts is not None:
        check_kind("counts", counts, OracleCounts, "use OracleCounts(), or leave it out")
    of_x, of_y, y = problem.layouts(x, y)
    if dual is not None:
        problem.check_like_inner(dual, of_y, "dual")
        check_alike(dual, y, "dual")
    estimator.check(problem.constants)
    oracles = Oracles(problem, of_x, of_y, counts, seed)
    start = None if dual is None else of_y.ravel(dual).detach()
    point = of_x.ravel(x).detach()
    estimate = estimator.estimate(oracles, point, of_y.ravel(y).detach(), start, step)
    if sharp:
        certificate: Tensor | None = sharpen(oracles, point, estimate.y, estimate.v, estimate.value).upper
    else:
        certificate = certify_from_residuals(oracles, point, estimate)
    return Hypergradient(
        of_x.unravel(estimate.value),
        of_y.unravel(estimate.y),
        None if estimate.v is None else of_y.unravel(estimate.v),
        Diagnostics(
            estimate.losses.mean(), estimate.inner_residual, estimate.dual_residual, estimate.inner_steps,
            estimate.iterations, certificate, oracles.counts,
        ),
    )  # fmt: skip


def certify(
    problem: BilevelProblem, x: Tree, result: Hypergradient, *, counts: OracleCounts | None = None
) -> Certificate:
    """Two-sided bounds on a hypergradient's error, within a factor of 3 of each other up to rounding; for any estimator.

    It spends oracle calls, see :func:`metalearn.bilevel.certificates.sharpen`; ``diagnostics.certificate`` spends none and is
    looser.

    Args:
        problem: a deterministic problem with its constants.
        x: the point of the hypergradient.
        result: what :func:`hypergradient` returned.
        counts: is updated with the oracle calls; ``None`` for new counts.

    Raises:
        ConfigError: the problem is stochastic, or a constant is unknown.

    Example:
        >>> import torch
        >>> from metalearn.bilevel import AID, GradientDescent, certify, hypergradient, quadratic
        >>> made = quadratic(size=5, outer_size=3, kappa=10.0, seed=0)
        >>> x = torch.ones(3, dtype=torch.float64)
        >>> estimator = AID(inner=GradientDescent(step_size=1.0, steps=20))
        >>> result = hypergradient(made.problem, x, estimator=estimator)
        >>> error = torch.linalg.vector_norm(result.value - made.hypergradient(x))
        >>> bounds = certify(made.problem, x, result)
        >>> bool(bounds.lower <= error <= bounds.upper)
        True
    """
    check_problem(problem)
    check_kind("result", result, Hypergradient, "pass what hypergradient(problem, x, ...) returned")
    of_x, of_y, y = problem.layouts(x, result.inner)
    if Layout.of(result.value, "result.value", of_x.problems) != of_x:
        raise ShapeError("result.value and x have different shapes, but it must be the hypergradient at x; pass that x")
    oracles = Oracles(problem, of_x, of_y, counts)
    dual = None if result.dual is None else of_y.ravel(result.dual)
    return sharpen(oracles, of_x.ravel(x), of_y.ravel(y), dual, of_x.ravel(result.value))


def check_problem(problem: object) -> None:
    """Raise a ConfigError unless this is a problem."""
    check_kind("problem", problem, BilevelProblem, "give BilevelProblem(outer_loss, inner_loss, init_inner) first")


def check_estimator(estimator: object) -> None:
    """Raise a ConfigError unless this is an estimator."""
    if isinstance(estimator, Estimator):
        return
    remedy = "make one of it"
    if isinstance(getattr(estimator, "estimator", None), Estimator):
        remedy = f"an algorithm is for run(...), and its estimator is {type(estimator).__name__}(...).estimator"
    raise ConfigError(f"estimator is {quote_value(estimator)}, but it must be an estimator such as AID(); {remedy}")


def certify_from_residuals(oracles: Oracles, x: Tensor, estimate: Estimate) -> Tensor | None:
    """The bound that the residuals at hand give for an estimate at ``x``, if there is one."""
    v, inner, dual = estimate.v, estimate.inner_residual, estimate.dual_residual
    if v is None or inner is None or dual is None or not is_deterministic(oracles):
        return None
    constants = oracles.constants(x)
    if not constants.knows(*NEEDED):
        return None
    bound = error_bound(constants, estimate.y, v, inner, dual)
    return bound.mean() if oracles.problem.shared_x else bound
