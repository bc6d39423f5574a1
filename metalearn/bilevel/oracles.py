"""The derivatives that every estimator is made of, each counted where it is evaluated.

The unit is that of the thesis (arXiv 2108.00330, Table 2.1): gradients of ``f`` and of ``g``, products with
``J = grad_xy g`` and with ``H = grad_yy g``; of a stochastic problem, each times the examples in its batch; of ``B`` problems,
each ``B`` times.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_leaves

from metalearn.bilevel.checks import check_second_derivative, explain_failure
from metalearn.bilevel.counts import Oracle, OracleCounts
from metalearn.bilevel.linearization import Linearization
from metalearn.bilevel.problem import BilevelProblem, Constants
from metalearn.bilevel.streams import Draw, Term
from metalearn.bilevel.trees import Layout, Tree, all_finite
from metalearn.checks import check_kind
from metalearn.errors import BilevelError, DivergenceError, ShapeError

__all__ = ["Oracles", "OuterGradient", "Sample", "check_finite", "independence_error", "sum_losses"]


class Sample(NamedTuple):
    """What a loss gets.

    Attributes:
        data: a batch, or what ``prepare`` made of it.
        weight: the number of its examples.
        is_prepared: which of the two the data are.
    """

    data: Tree
    weight: int
    is_prepared: bool = False


class OuterGradient(NamedTuple):
    """``f`` and its gradient at a point.

    Attributes:
        losses: ``[]``, or ``[B]``.
        of_x: ``[P]``, summed over problems where they share ``x``, or ``[B, P]``.
        of_y: ``[D]``, or ``[B, D]``.
        reaches_x: whether ``f`` depends on ``x``.
    """

    losses: Tensor
    of_x: Tensor
    of_y: Tensor
    reaches_x: bool


class Oracles:
    """A problem's derivatives at flat vectors ``x`` ``[P]`` (or ``[B, P]``) and ``y`` ``[D]`` (or ``[B, D]``).

    Example:
        >>> import torch
        >>> from metalearn.bilevel import Oracles, quadratic
        >>> problem = quadratic(size=5, outer_size=3, kappa=10.0, seed=0).problem
        >>> x = torch.zeros(3, dtype=torch.float64)
        >>> of_x, of_y, y = problem.layouts(x)
        >>> oracles = Oracles(problem, of_x, of_y)
        >>> oracles.inner_gradient(of_x.ravel(x), of_y.ravel(y), oracles.sample("inner", 0)).shape
        torch.Size([5])
        >>> oracles.counts.gc_g
        1
    """

    def __init__(
        self, problem: BilevelProblem, x: Layout, y: Layout, counts: OracleCounts | None = None, seed: int = 0
    ) -> None:
        """Bind a problem.

        Args:
            problem: what is differentiated.
            x: the layout of ``x``.
            y: the layout of ``y``.
            counts: is updated; ``None`` for new ones.
            seed: the seed of every draw.
        """
        if torch.is_inference_mode_enabled():
            raise BilevelError(
                "inference mode is on, but derivatives of the losses are needed; leave it by torch.inference_mode(False), on "
                "tensors made outside of it, or use torch.no_grad()"
            )
        self.problem, self.x, self.y, self.seed = problem, x, y, seed
        self.counts = counts if counts is not None else OracleCounts()
        self.problems = problem.batched or 1
        self.draws = 1
        self._examined = False

    @property
    def averages(self) -> int:
        """What sums over problems are divided by. ``Phi`` is a mean where they share ``x``."""
        return self.problems if self.problem.shared_x else 1

    def sample(self, term: Term, step: int, index: int = 0, size: int | None = None) -> Sample:
        """The batch of a term, see :class:`~metalearn.bilevel.streams.Draw`."""
        stream = self.problem.stream
        if stream is None:
            return Sample(None, 1)
        draw = Draw(self.seed, step, term, index, size)
        samples = getattr(stream, "samples", None)
        return Sample(stream(draw), samples(draw) if samples is not None else size or 1)

    def constants(self, x: Tensor) -> Constants:
        """What is known of the curvature at a point."""
        constants_at = self.problem.constants_at
        if constants_at is None:
            return self.problem.constants
        tree = self.x.unravel(x.detach())
        with explain_failure("constants_at", x=tree):
            constants = constants_at(tree)
        check_kind("constants_at(x)", constants, Constants, "let it return Constants(...)")
        return constants

    def outer_step(self, draw: int) -> int:
        """The outer step of a draw's number, for messages: an algorithm that takes several draws in each sets ``draws``."""
        return draw // self.draws

    def count(self, oracle: Oracle, sample: Sample) -> None:
        """Count one evaluation on a batch: of each problem, and of each of its examples where data are drawn."""
        self.counts.add(oracle, sample.weight * self.problems)

    def repeat(self, times: int) -> Oracles:
        """The same problem that many times at once, each with its own ``x``; counted in the same place."""
        problem = dataclasses.replace(self.problem, batched=times, shared_x=False, shared_batch=True)
        x, y = (dataclasses.replace(layout, problems=times) for layout in (self.x, self.y))
        many = Oracles(problem, x, y, self.counts, self.seed)
        many.draws = self.draws
        return many

    def prepare(self, x: Tensor, sample: Sample) -> Sample:
        """What the inner loss gets for a sample: what the problem's ``prepare`` makes of it, with its graph, or itself."""
        function = self.problem.prepare
        if function is None or sample.is_prepared:
            return sample
        dims = (self._axis_of_x, self._axis_of_batch(sample.data))
        maps = self.problem.batched is not None and dims != (None, None)
        if maps and dims[1] == 0:  # vmap over the batch alone takes any length
            self._check_axis("prepare", sample.data)

        def prepare(x: Tensor, batch: Tree) -> Tree:
            tree = self.x.unravel(x)
            with explain_failure("prepare", x=tree, batch=batch):
                prepared = function(tree, batch)
            for leaf in tree_leaves(prepared) if maps else ():
                if not isinstance(leaf, Tensor):
                    raise ShapeError(
                        f"prepare returns a {type(leaf).__name__} with batched={self.problem.batched}, but then all that it "
                        "returns must be tensors; let inner_loss close over the rest"
                    )
            return prepared

        with torch.enable_grad():
            prepared = self._map(prepare, "prepare", (x, sample.data), dims) if maps else prepare(x, sample.data)
        return Sample(prepared, sample.weight, is_prepared=True)

    def inner_losses(self, x: Tensor, y: Tensor, sample: Sample, twice: bool = False) -> Tensor:
        """``g``, ``[]`` or ``[B]``, not counted; differentiable, also ``twice``, which is examined once.

        Raises:
            BilevelError: torch's second derivative of an operator in ``g`` is wrong.
        """
        sample = self.prepare(x, sample)
        losses = self._losses(self.problem.inner_loss, "inner_loss", x, y, sample)
        if twice and not self._examined and losses.grad_fn is not None:
            # what is prepared is differentiated once
            ends = tree_leaves(sample.data) if sample.is_prepared else ()
            check_second_derivative(losses.grad_fn, y, {leaf.grad_fn for leaf in ends if isinstance(leaf, Tensor)})
            self._examined = True
        return losses

    def inner_gradient(self, x: Tensor, y: Tensor, sample: Sample) -> Tensor:
        """``grad_y g``, without a graph."""
        self.count("gc_g", sample)
        with torch.enable_grad():
            leaf = y.detach().requires_grad_()
            return self._inner_gradient(x.detach(), leaf, sample, create_graph=False)

    def outer_gradient(self, x: Tensor, y: Tensor, sample: Sample) -> OuterGradient:
        """``f``, ``grad_x f`` and ``grad_y f``.

        Raises:
            BilevelError: ``f`` does not depend on ``y``.
        """
        self.count("gc_f", sample)
        with torch.enable_grad():
            x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
            losses = self._losses(self.problem.outer_loss, "outer_loss", x, y, sample)
            of_x = of_y = None
            if losses.requires_grad:
                with explain_failure("the derivative of outer_loss", x=x, y=y, batch=sample.data):
                    of_x, of_y = torch.autograd.grad(sum_losses(losses), (x, y), allow_unused=True)
        if of_y is None:
            lacks = "y" if of_x is not None else "x or y"
            raise BilevelError(
                f"outer_loss does not depend on {lacks}, but the hypergradient passes through y; compute it from y, "
                "without detach() or .item()"
            )
        reaches_x = of_x is not None
        if of_x is None:
            of_x = x.new_zeros(()).expand_as(x)  # an expanded tensor takes no memory
        return OuterGradient(losses.detach(), of_x.detach(), of_y.detach(), reaches_x)

    def linearize(self, x: Tensor, y: Tensor, sample: Sample, others: Sequence[Tensor] = ()) -> Linearization:
        """The inner gradient with its graph, which reaches ``x``, and ``others``, tensors of the batch."""
        with torch.enable_grad():
            x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
            gradient = self._inner_gradient(x, y, sample, create_graph=True)
        guard = partial(explain_failure, "the second derivative of inner_loss", x=x, y=y)
        return Linearization(gradient, y, [x, *others], partial(self.count, sample=sample), guard)

    def _inner_gradient(self, x: Tensor, y: Tensor, sample: Sample, create_graph: bool) -> Tensor:
        losses = self.inner_losses(x, y, sample, twice=create_graph)
        if losses.requires_grad:
            with explain_failure("the derivative of inner_loss", x=x, y=y, batch=sample.data):
                (gradient,) = torch.autograd.grad(sum_losses(losses), y, create_graph=create_graph, allow_unused=True)
            if gradient is not None:
                return gradient
        raise independence_error()

    @property
    def _axis_of_x(self) -> int | None:
        return None if self.problem.shared_x else 0

    def _axis_of_batch(self, data: Tree) -> int | None:
        return None if data is None or self.problem.shared_batch else 0

    def _losses(self, loss: Any, name: str, x: Tensor, y: Tensor, sample: Sample) -> Tensor:
        def call(x: Tensor, y: Tensor, data: Tree) -> Tensor:
            inputs = "prepared" if sample.is_prepared else "batch"
            arguments = {"x": self.x.unravel(x), "y": self.y.unravel(y), inputs: data}
            with explain_failure(name, **arguments):
                value: Tensor = loss(*arguments.values())
            if not isinstance(value, Tensor) or value.ndim or value.is_complex():
                shape: Any = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
                shape = value.dtype if isinstance(value, Tensor) and value.is_complex() else shape
                raise ShapeError(
                    f"{name} returns {shape}, but it must return a scalar tensor for each problem; take the mean"
                )
            return value

        if self.problem.batched is None:
            return call(x, y, sample.data)
        axis = self._axis_of_batch(sample.data)
        if sample.is_prepared:
            axis = None if self._axis_of_x is None and axis is None else 0
        losses: Tensor = self._map(call, name, (x, y, sample.data), (self._axis_of_x, 0, axis))
        return losses

    def _map(self, function: Any, name: str, arguments: tuple[Any, ...], axes: tuple[int | None, ...]) -> Any:
        """A function of one problem on all of them; the last argument is the batch."""
        try:
            return vmap(function, in_dims=axes)(*arguments)
        except ValueError:
            if axes[-1] == 0:
                self._check_axis(name, arguments[-1])
            raise

    def _check_axis(self, name: str, batch: Tree) -> None:
        """Raise a ShapeError unless the first axis of every tensor of a batch is that of problems."""
        for leaf in tree_leaves(batch):
            if not isinstance(leaf, Tensor) or leaf.shape[:1] != (self.problem.batched,):
                kind = f"tensor of shape {list(leaf.shape)}" if isinstance(leaf, Tensor) else type(leaf).__name__
                raise ShapeError(
                    f"the batch of {name} has a {kind}, but the first axis of all its tensors must be the "
                    f"{self.problem.batched} problems; stack them, or set shared_batch=True"
                )


def sum_losses(losses: Tensor) -> Tensor:
    """The sum over problems; of one problem its loss itself, since each node of a graph costs."""
    return losses.sum() if losses.ndim else losses


def independence_error() -> BilevelError:
    """What to raise if the inner loss has no gradient."""
    return BilevelError(
        "inner_loss does not depend on y, but y minimises it; compute it from y, without detach() or .item()"
    )


def check_finite(tensor: Tensor, term: str, step: int) -> None:
    """Raise a DivergenceError that names the term and the outer step if an entry is not finite."""
    if not all_finite(tensor):
        bad = tensor.detach()[~tensor.isfinite()].flatten()[0]
        raise DivergenceError(
            f"{term} has an entry {float(bad)} at outer step {step}, but it must be finite; lower the step sizes, or "
            "check the losses and their data"
        )
