"""The inner solution as a function that autograd differentiates: ``dy*/dx = -H^-1 (grad_xy g)'``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from metalearn.bilevel.adjoint import solve_adjoint
from metalearn.bilevel.counts import OracleCounts
from metalearn.bilevel.estimators.base import bind_inner_gradient
from metalearn.bilevel.hypergradients import check_problem
from metalearn.bilevel.oracles import Oracles, Sample, check_finite
from metalearn.bilevel.problem import BilevelProblem
from metalearn.bilevel.solvers.indefinite import CGOrMinRes
from metalearn.bilevel.solvers.inner import InnerSolver
from metalearn.bilevel.solvers.linear import LinearSolver
from metalearn.bilevel.streams import Fixed
from metalearn.bilevel.trees import Layout, Tree
from metalearn.checks import UNBOUNDED, check_kind, check_whole
from metalearn.errors import BilevelError, ConfigError

__all__ = ["solve_inner"]

_TENSOR = object()
"""Stands for a leaf that is saved as a tensor."""


def solve_inner(
    problem: BilevelProblem,
    x: Tree,
    y: Tree | None = None,
    *,
    inner: InnerSolver,
    solver: LinearSolver | None = None,
    seed: int = 0,
    step: int = 0,
    counts: OracleCounts | None = None,
) -> Tree:
    """``y*(x)``, a tree like ``init_inner(x)``, whose backward pass solves ``H v = dL/dy`` and gives ``-J v`` to ``x``.

    The same product goes to the tensors of the inner batch that require gradients, such as features; the start ``y`` gets
    none. Works under ``torch.func.vmap`` and ``torch.func.grad``, where ``x``, ``y`` and the inner batch may have the mapped
    axis (what the losses close over may not). Second and forward-mode derivatives are an error.

    Args:
        problem: the problem whose inner loss is minimised; its ``outer_loss`` is not used. With a stream, the batch is
            the first inner one of this step and seed.
        x: the outer variable, a tree.
        y: where the solver starts; ``None`` for ``init_inner(x)``.
        inner: the solver of the inner problem.
        solver: solves the linear system of the backward pass. ``None`` takes conjugate gradients to a residual of
            ``1e-3 sqrt(eps)`` times the norm of the right-hand side. Where they meet negative curvature, minimal
            residuals take over, which is said once in the log.
        seed: the seed of the batch.
        step: the number of the step whose batch is drawn.
        counts: is updated with the oracle calls; ``None`` for new counts.

    Raises:
        BilevelError: a solver fails, a second or forward-mode derivative is asked for, or inference mode is on.
        ConfigError: under ``vmap``, a problem that has an axis of problems already.

    Example:
        >>> import torch
        >>> from metalearn.bilevel import BilevelProblem, GradientDescent, solve_inner
        >>> problem = BilevelProblem(
        ...     outer_loss=lambda x, y, batch: y.sum(),
        ...     inner_loss=lambda x, y, batch: (y - 2 * x).square().sum() / 2,
        ...     init_inner=torch.zeros_like,
        ... )
        >>> x = torch.tensor([1.0], requires_grad=True)
        >>> y = solve_inner(problem, x, inner=GradientDescent(step_size=1.0, steps=1))
        >>> y.sum().backward()
        >>> x.grad  # y* = 2 x
        tensor([2.])
    """
    check_problem(problem)
    check_kind("the inner of solve_inner", inner, InnerSolver, "use inner=GradientDescent(step_size=..., steps=...)")
    if solver is not None:
        check_kind("the solver of solve_inner", solver, LinearSolver, "use solver=CG(iterations=10), or leave it out")
    for name, value in (("step", step), ("seed", seed)):
        check_whole(name, value, None, UNBOUNDED, "use 0", owner="solve_inner", loose=True)
    if counts is not None:
        check_kind("counts", counts, OracleCounts, "use OracleCounts(), or leave it out")
    of_x, of_y, y = problem.layouts(x, y)
    inner.check(problem.constants)
    if solver is not None:
        solver.check(problem.constants)
    oracles = Oracles(problem, of_x, of_y, counts, seed)
    sample = oracles.sample("inner", step)
    leaves, spec = tree_flatten(sample.data)
    setting = _Setting(problem, of_x, of_y, inner, solver, spec, sample.weight, oracles.counts, step)
    solution = _Solve.apply(setting, of_x.ravel(x), of_y.ravel(y).detach(), *leaves)
    return of_y.unravel(solution)


@dataclass(frozen=True)
class _Setting:
    """All that is no tensor."""

    problem: BilevelProblem
    x: Layout
    y: Layout
    inner: InnerSolver
    solver: LinearSolver | None
    spec: Any
    weight: int
    counts: OracleCounts
    step: int

    def oracles(self, leaves: Sequence[Any]) -> tuple[Oracles, Sample]:
        data = tree_unflatten(list(leaves), self.spec)
        problem = dataclasses.replace(self.problem, stream=Fixed(None, data))
        return Oracles(problem, self.x, self.y, self.counts), Sample(data, self.weight)

    def mapped(self, size: int) -> _Setting:
        """The same for ``size`` problems at once, each with its own ``x``."""
        if self.problem.batched is not None:
            raise ConfigError(
                f"solve_inner is under vmap with batched={self.problem.batched}, or under a second vmap, such as that of jacrev, "
                "but it can have one axis of problems; drop batched, or one vmap"
            )
        problem = dataclasses.replace(self.problem, batched=size, shared_x=False, shared_batch=False)
        x, y = (dataclasses.replace(layout, problems=size) for layout in (self.x, self.y))
        return dataclasses.replace(self, problem=problem, x=x, y=y)


def _stack(size: int, tensors: Sequence[Any], dims: Sequence[int | None]) -> list[Any]:
    """Tensors with the mapped axis in front, also those that had none."""
    stacked = []
    for tensor, dim in zip(tensors, dims, strict=True):
        if not isinstance(tensor, Tensor):
            stacked.append(tensor)
        else:
            stacked.append(tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0))
    return stacked


class _Solve(torch.autograd.Function):
    """``(x, y_0, batch) -> y*``."""

    @staticmethod
    def forward(setting: _Setting, x: Tensor, y: Tensor, *leaves: Any) -> Tensor:
        oracles, _ = setting.oracles([leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in leaves])
        try:
            solution = setting.inner.solve(bind_inner_gradient(oracles, x.detach(), setting.step), y, setting.step)
        except RuntimeError as error:
            if "escaped from inside a function being vmapped" in str(error):
                raise BilevelError(
                    "inner_loss closes over a tensor that a vmap around solve_inner maps, but what is mapped must be x, y or the "
                    "inner batch; pass it by with_batch(inner=...)"
                ) from error
            raise
        check_finite(solution.y, "y", setting.step)
        return solution.y.clone() if solution.y is y else solution.y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        setting, x, _, *leaves = inputs
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        ctx.setting, ctx.others = setting, [_TENSOR if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        ctx.save_for_backward(x, output, *tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
        x, y, *tensors = ctx.saved_tensors
        kept = iter(tensors)
        leaves = [next(kept) if other is _TENSOR else other for other in ctx.others]
        wanted = tuple(ctx.needs_input_grad[3:])
        of_x, *of_leaves = _Adjoint.apply(ctx.setting, wanted, x, y, cotangents[0], *leaves)
        products = iter(of_leaves)
        return None, of_x, None, *(next(products) if want else None for want in wanted)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise _forward_mode_error()

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], setting: _Setting, *tensors: Any) -> tuple[Tensor, int]:
        stacked = _stack(info.batch_size, tensors, in_dims[1:])
        return _Solve.apply(setting.mapped(info.batch_size), *stacked), 0


class _Adjoint(torch.autograd.Function):
    """``(x, y*, u, batch) -> -J H^-1 u``, and the same for the wanted tensors of the batch."""

    @staticmethod
    def forward(setting: _Setting, wanted: tuple[bool, ...], x: Tensor, y: Tensor, u: Tensor, *leaves: Any) -> Any:
        with torch.enable_grad():
            leaves = tuple(
                leaf.detach().requires_grad_(want) if isinstance(leaf, Tensor) else leaf
                for leaf, want in zip(leaves, wanted, strict=True)
            )
        oracles, sample = setting.oracles(leaves)
        chosen = [leaf for leaf, want in zip(leaves, wanted, strict=True) if want]
        here = oracles.linearize(x, y, sample, chosen)
        solution = solve_adjoint(
            here, u.detach(), setting.solver or _make_precise_solver(u), caller="solve_inner", about=setting.problem.inner_loss,
            is_convex=lambda: oracles.constants(x).mu is not None,
        )  # fmt: skip
        check_finite(solution.v, "v", setting.step)
        products = here.pull_back(solution.v)
        for product in products:
            check_finite(product, "the implicit gradient", setting.step)
        return tuple(products)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        raise BilevelError(
            "a second derivative of solve_inner was asked for, but it has a first one alone; drop create_graph=True, "
            "or unroll the inner solver with ITD"
        )

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise _forward_mode_error()

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], setting: _Setting, wanted: Any, *tensors: Any) -> tuple[Any, Any]:
        stacked = _stack(info.batch_size, tensors, in_dims[2:])
        products = _Adjoint.apply(setting.mapped(info.batch_size), wanted, *stacked)
        return products, (0,) * len(products)


def _forward_mode_error() -> BilevelError:
    return BilevelError(
        "a forward-mode derivative of solve_inner was asked for (jvp, jacfwd or hessian), but it has a reverse-mode one alone; "
        "use grad, vjp or jacrev"
    )


def _make_precise_solver(u: Tensor) -> LinearSolver:
    size = float(torch.linalg.vector_norm(u, dim=-1).max())
    return CGOrMinRes(
        tolerance=max(1e-3 * torch.finfo(u.dtype).eps ** 0.5 * size, torch.finfo(u.dtype).tiny), max_iterations=10_000
    )
