"""The constants of a bilevel problem at a point, measured."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from metalearn.bilevel import BilevelProblem, Constants, Oracles
from metalearn.bilevel.trees import Tree
from metalearn.checks import MOST_STEPS, UNBOUNDED, check_number, check_whole
from metalearn.errors import ConfigError
from metalearn.modules.problem_based.core import BilevelCore
from metalearn.theory.curvature import Spectrum, lanczos

__all__ = ["measure_curvature", "measure_problem"]


def measure_problem(
    problem: BilevelProblem | BilevelCore,
    x: Tree | None = None,
    y: Tree | None = None,
    iterations: int = 30,
    tolerance: float = 1e-3,
    seed: int = 0,
) -> Constants:
    """Measure ``mu``, ``L``, ``L_xy`` and ``M`` of a bilevel problem at a point ``(x, y)``.

    They hold there alone: a bound for every point is not measured. Of several problems ``mu`` is the smallest and the others are
    the largest. ``mu`` and ``L`` are the ends of the spectrum of ``grad_yy g``, by Lanczos' iteration, which approaches ``mu``
    from above. ``L_xy`` is the norm of ``grad_xy g``, from products with ``J'J``. ``M`` is the norm of ``grad_y f``. Names are
    those of the thesis (arXiv 2108.00330).

    Args:
        problem: the problem; or a module that solves one, such as :class:`~metalearn.BilevelModule`, at its own ``x`` and ``y``.
        x: the outer variables; ``None`` for those of the module.
        y: the inner variables; ``None`` for those of the module, or for where the inner solver starts.
        iterations: the most products for each constant.
        tolerance: of eigenvalues, as a share of the largest. Iterations end when it is reached.
        seed: of the start of the iterations, and of the batch where data are drawn.

    Raises:
        BilevelError: an operation has no second derivative.
        ConfigError: there is no ``x``, a number is out of range, or ``grad_yy g`` has an eigenvalue of 0 or below.
        ShapeError: the trees do not fit together.

    Example:
        >>> import torch
        >>> from metalearn.bilevel import quadratic
        >>> from metalearn.theory import measure_problem
        >>> made = quadratic(size=5, outer_size=3, kappa=10.0, seed=0)
        >>> measured = measure_problem(made.problem, torch.zeros(3, dtype=torch.float64))
        >>> known = made.problem.constants
        >>> abs(measured.L / known.L - 1) < 1e-3, abs(measured.mu / known.mu - 1) < 1e-3
        (True, True)
    """
    check_whole("iterations", iterations, 1, MOST_STEPS)
    check_number("tolerance", tolerance, "use 0.001", above=0)
    check_whole("seed", seed, 0, UNBOUNDED)
    oracles, flat_x, flat_y = _open(problem, x, y, seed)
    ends = _measure_spectrum(oracles, flat_x, flat_y, iterations, tolerance, seed)
    smallest = float(ends.smallest.min())
    if not smallest > 0:
        raise ConfigError(
            f"grad_yy g has the eigenvalue {smallest:.3g} at this point, but inner_loss must be strongly convex in y; add l2 "
            "regularisation to it"
        )
    outer = oracles.outer_gradient(flat_x, flat_y, oracles.sample("outer", 0))
    return Constants(
        mu=smallest,
        L=float(ends.largest.max()),
        L_xy=_measure_cross(oracles, flat_x, flat_y, iterations, tolerance, seed),
        M=float(outer.of_y.norm(dim=-1).max()),
    )


def measure_curvature(
    problem: BilevelProblem | BilevelCore, x: Tree | None, y: Tree | None, iterations: int, tolerance: float, seed: int
) -> tuple[float, float]:
    """The smallest and the largest eigenvalue of ``grad_yy g`` at a point, of all problems; the smallest may be negative."""
    ends = _measure_spectrum(*_open(problem, x, y, seed), iterations, tolerance, seed)
    return float(ends.smallest.min()), float(ends.largest.max())


def _open(
    problem: BilevelProblem | BilevelCore, x: Tree | None, y: Tree | None, seed: int
) -> tuple[Oracles, Tensor, Tensor]:
    """The oracles of a problem, and the point as vectors."""
    problem, x, y = _read(problem, x, y)
    problem, x = _separate(problem, x)
    of_x, of_y, y = problem.layouts(x, y)
    return Oracles(problem, of_x, of_y, seed=seed), of_x.ravel(x).detach(), of_y.ravel(y).detach()


def _measure_spectrum(oracles: Oracles, x: Tensor, y: Tensor, iterations: int, tolerance: float, seed: int) -> Spectrum:
    here = oracles.linearize(x, y, oracles.sample("inner", 0))
    return lanczos(here.hvp, y, iterations, tolerance, seed)


def _separate(problem: BilevelProblem, x: Tree) -> tuple[BilevelProblem, Tree]:
    """The same problem where each of several has an ``x`` of its own, and so its own derivative by it."""
    if problem.batched is None or not problem.shared_x:
        return problem, x

    def begin(x: Tree) -> Tree:
        return problem.init_inner(tree_map(lambda value: value[0], x))

    every = tree_map(lambda value: value.expand(problem.batched, *value.shape), x)
    return dataclasses.replace(problem, shared_x=False, init_inner=begin), every


def _read(problem: Any, x: Tree | None, y: Tree | None) -> tuple[BilevelProblem, Tree, Tree | None]:
    """The problem and the point, those of a module where none are given."""
    if isinstance(problem, BilevelCore) and problem.is_built:
        return problem.problem, problem.x if x is None else x, problem.y if y is None else y
    if not isinstance(problem, BilevelProblem):
        raise ConfigError(
            f"problem is a {type(problem).__name__}, but it must be a BilevelProblem or a module with one; use "
            "measure_constants for an episodic module such as MAML"
        )
    if x is None:
        raise ConfigError(
            "x is None, but a problem is measured at a point; give x=torch.zeros(...), or what it trains to"
        )
    return problem, x, y


def _measure_cross(oracles: Oracles, x: Tensor, y: Tensor, iterations: int, tolerance: float, seed: int) -> float:
    """The largest norm of ``grad_xy g``: the root of the largest eigenvalue of ``J' J``, which acts on ``y``."""
    sample = oracles.sample("inner", 0)
    leaves = x.clone().requires_grad_(), y.clone().requires_grad_()
    with torch.enable_grad():
        losses = oracles.inner_losses(*leaves, sample, twice=True)
        (slope,) = torch.autograd.grad(losses.sum(), leaves[1], create_graph=True, materialize_grads=True)
        cotangent = torch.zeros_like(slope).requires_grad_()
        (back,) = torch.autograd.grad(slope, leaves[0], cotangent, create_graph=True, materialize_grads=True)
    if not back.requires_grad:
        return 0.0

    def product(v: Tensor) -> Tensor:
        (down,) = torch.autograd.grad(slope, leaves[0], v, retain_graph=True, materialize_grads=True)
        (up,) = torch.autograd.grad(back, cotangent, down, retain_graph=True, materialize_grads=True)
        return up

    return float(lanczos(product, y, iterations, tolerance, seed).largest.clamp(min=0).max().sqrt())
