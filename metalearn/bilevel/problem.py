"""What is solved: ``min_x Phi(x) = f(x, y*(x))`` with ``y*(x) = argmin_y g(x, y)``, and what is known of its curvature."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves

from metalearn.bilevel.checks import explain_failure
from metalearn.bilevel.streams import Fixed, Stream
from metalearn.bilevel.trees import Layout, Tree
from metalearn.checks import check_flag, check_function, check_kind, check_number, check_whole
from metalearn.errors import ConfigError, ShapeError

__all__ = ["BilevelProblem", "Constants", "parameters_as_inner"]


@dataclass(frozen=True)
class Constants:
    """Bounds on the derivatives of ``f`` and ``g``; ``None`` where unknown. Names are the thesis's (arXiv 2108.00330).

    Attributes:
        mu: the constant of strong convexity of ``g(x, .)``.
        L: the smoothness of ``g(x, .)``, which is the largest eigenvalue of ``grad_yy g``. Step sizes are held to it.
        L_xy: the largest norm of ``grad_xy g``. A certificate needs it at ``y*(x)`` alone.
        rho_J: the Lipschitz constant of ``grad_xy g`` in ``y`` (tau in the thesis). It is 0 for a quadratic.
        rho_H: the Lipschitz constant of ``grad_yy g`` in ``y`` (rho in the thesis). It is 0 for a quadratic.
        L_fxx: the Lipschitz constant of ``grad_x f`` in ``x``.
        L_fxy: the Lipschitz constant of ``grad_x f`` in ``y``.
        L_fyy: the Lipschitz constant of ``grad_y f`` in ``y``.
        M: the largest norm of ``grad_y f``.
        mu_x: the constant of strong convexity of ``Phi``.
        L_phi: the smoothness of ``Phi``.
        L_upper: a bound on ``L`` that may be loose. It stands for the rounding in a certificate; step sizes are not
            held to it.

    Example:
        >>> from metalearn.bilevel import Constants
        >>> constants = Constants(mu=0.1, L=1.0)
        >>> constants.knows("mu", "L"), constants.knows("L_xy")
        (True, False)
    """

    mu: float | None = None
    L: float | None = None
    L_xy: float | None = None
    rho_J: float | None = None
    rho_H: float | None = None
    L_fxx: float | None = None
    L_fxy: float | None = None
    L_fyy: float | None = None
    M: float | None = None
    mu_x: float | None = None
    L_phi: float | None = None
    L_upper: float | None = None

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if value is not None:
                above, least = (0.0, None) if name in ("mu", "L", "L_upper", "mu_x", "L_phi") else (None, 0.0)
                remedy = "leave it None if unknown"
                check_number(f"constants.{name}", value, remedy, above=above, least=least, finite=False, loose=True)
        if self.mu is not None and self.L is not None and self.mu > self.L * (1 + 1e-9):
            raise ConfigError(f"constants.mu is {self.mu:g}, above constants.L = {self.L:g}; swap them")
        for small, large in (("mu_x", "L_phi"), ("mu", "L_upper"), ("L", "L_upper")):
            least, most = getattr(self, small), getattr(self, large)
            if least is not None and most is not None and least > most * (1 + 1e-9):
                raise ConfigError(
                    f"constants.{small} is {least:g}, above constants.{large} = {most:g}, but it is the smaller by "
                    f"definition; leave {large} None if unknown"
                )

    def need(self, purpose: str, *names: str) -> tuple[float, ...]:
        """The constants of these names.

        Raises:
            ConfigError: one of them is unknown.
        """
        missing = [name for name in names if getattr(self, name) is None]
        if missing:
            raise ConfigError(
                f"{purpose} needs constants.{', constants.'.join(missing)}, which the problem leaves None; give "
                f"BilevelProblem(constants=Constants({missing[0]}=...))"
            )
        return tuple(float(getattr(self, name)) for name in names)

    def knows(self, *names: str) -> bool:
        """Whether none of these is ``None``."""
        return all(getattr(self, name) is not None for name in names)


@dataclass(frozen=True)
class BilevelProblem:
    """``min_x f(x, y*(x))``, ``y*(x) = argmin_y g(x, y)``; or the mean of ``batched`` such problems, solved at once.

    Attributes:
        outer_loss: the function ``f(x, y, batch) -> scalar`` for one problem; ``x`` and ``y`` are trees of tensors.
        inner_loss: the function ``g(x, y, batch) -> scalar`` for one problem, strongly convex in ``y``.
        init_inner: the function ``x -> y`` that says where the inner solver starts. For ``batched`` problems it gives
            all of them, ``[B, ...]``.
        constants: what is known of the curvature, for every ``x``.
        constants_at: the function ``x -> constants``, where more is known at a point. Certificates are made of these.
        stream: gives the batches, see :mod:`metalearn.bilevel.streams`. Without a stream, ``batch`` is ``None``.
        batched: the number ``B`` of problems; ``None`` for one. Every tensor of ``y`` then has a leading axis ``B``, and so
            has every tensor of a batch, unless ``shared_batch``.
        shared_x: whether ``B`` problems share one ``x``, so that ``Phi`` is their mean. Otherwise ``x`` has the leading
            axis too, and each problem has its own hypergradient.
        shared_batch: whether ``B`` problems see one batch, whose tensors have no leading axis.
        prepare: the function ``(x, batch) -> prepared``: what the inner loss computes from ``x`` and its batch alone,
            such as features. The loss is then ``g(x, y, prepared)``. It is made once for all inner steps on a batch,
            and ITD goes back through it once.

    Example:
        >>> import torch
        >>> from metalearn.bilevel import BilevelProblem, GradientDescent, solve_inner
        >>> problem = BilevelProblem(
        ...     outer_loss=lambda x, y, batch: (y - 3).square().sum() / 2,
        ...     inner_loss=lambda x, y, batch: (y - x).square().sum() / 2,
        ...     init_inner=torch.zeros_like,
        ... )
        >>> inner = GradientDescent(step_size=1.0, steps=1)
        >>> solve_inner(problem, torch.tensor([1.0]), inner=inner)
        tensor([1.])
    """

    outer_loss: Callable[[Any, Any, Any], Tensor]
    inner_loss: Callable[[Any, Any, Any], Tensor]
    init_inner: Callable[[Any], Tree]
    constants: Constants = field(default_factory=Constants)
    stream: Stream | None = None
    batched: int | None = None
    shared_x: bool = True
    shared_batch: bool = False
    constants_at: Callable[[Any], Constants] | None = None
    prepare: Callable[[Any, Any], Tree] | None = None

    def __post_init__(self) -> None:
        remedy = "write a function f(x, y, batch) -> scalar"
        called: dict[str, tuple[Any, str]] = {
            "outer_loss": (self.outer_loss, remedy), "inner_loss": (self.inner_loss, remedy),
            "init_inner": (self.init_inner, "write a function of x, such as lambda x: torch.zeros(5)"),
        }  # fmt: skip
        if self.constants_at is not None:
            called["constants_at"] = self.constants_at, "write a function x -> Constants(...), or give constants="
        if self.prepare is not None:
            called["prepare"] = self.prepare, "write a function of x and an inner batch, or leave it out"
        if self.stream is not None:
            called["stream"] = self.stream, "use problem.with_batch(outer=..., inner=...), Fixed(...) or Sampled(...)"
        for name, (value, advice) in called.items():
            check_function(name, value, advice)
        check_kind("constants", self.constants, Constants, "use Constants(mu=..., L=...)")
        if self.batched is not None:
            check_whole("batched", self.batched, 1, remedy="use None for a single problem", loose=True)
        check_flag("shared_x", self.shared_x)
        check_flag("shared_batch", self.shared_batch)

    def with_batch(self, outer: Tree, inner: Tree) -> BilevelProblem:
        """The same problem on this data, such as the query and the support sets of a step's tasks."""
        return dataclasses.replace(self, stream=Fixed(outer, inner))

    def layouts(self, x: Tree, y: Tree | None = None) -> tuple[Layout, Layout, Tree]:
        """How ``x`` and ``y`` lie in vectors, and ``y``: that given, or the initial one.

        Raises:
            ShapeError: ``y`` has not the structure and the shapes of ``init_inner(x)``, or not the dtype and device of ``x``; or
                an axis of problems is missing.
        """
        of_x = Layout.of(x, "x", None if self.shared_x else self.batched)
        with torch.no_grad(), explain_failure("init_inner", x=x):
            initial = self.init_inner(x)
        of_y = Layout.of(initial, "init_inner(x)", self.batched)
        if y is None:
            y = initial
        else:
            self.check_like_inner(y, of_y, "y")
        outer, inner = tree_leaves(x)[0], tree_leaves(y)[0]
        if (outer.dtype, outer.device) != (inner.dtype, inner.device):
            raise ShapeError(
                f"x is {outer.dtype} on {outer.device}, but y, which init_inner(x) makes, is {inner.dtype} on {inner.device}, "
                "and they must be alike; make y with dtype=x.dtype, device=x.device"
            )
        return of_x, of_y, y

    def check_like_inner(self, tree: Tree, layout: Layout, name: str) -> None:
        """Raise a ShapeError unless a tree has the structure and the shapes of the inner variables."""
        if Layout.of(tree, name, self.batched) != layout:
            expected = ", ".join(str(list(shape)) for shape in layout.shapes)
            raise ShapeError(
                f"{name} has the shapes {_format_shapes(tree)}, but init_inner(x) returns {expected} for each problem, in "
                f"{layout.spec}; pass {name}=None or such a tree"
            )


def parameters_as_inner(module: nn.Module) -> tuple[Callable[..., Any], Callable[[Any], dict[str, Tensor]]]:
    """A module as a pure function of its parameters, for them to be ``y`` (or ``x``).

    Returns:
        ``call(params, *inputs)``, the module's output with these parameters, and ``init(x)``, a copy of its own ones.

    Example:
        >>> import torch
        >>> from metalearn.bilevel import parameters_as_inner
        >>> call, init = parameters_as_inner(torch.nn.Linear(8, 5))
        >>> y = init(None)
        >>> list(y), call(y, torch.randn(10, 8)).shape
        (['weight', 'bias'], torch.Size([10, 5]))
    """

    check_kind("module", module, nn.Module, "a function is an inner_loss of its own")
    return partial(_call, module), partial(_copy_parameters, module)


def _call(module: nn.Module, params: dict[str, Tensor], *inputs: Any) -> Any:
    return torch.func.functional_call(module, params, inputs)


def _copy_parameters(module: nn.Module, _: Any) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def _format_shapes(tree: Tree) -> str:
    return ", ".join(str(list(leaf.shape)) for leaf in tree_flatten(tree)[0])
