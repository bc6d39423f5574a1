"""Iterative differentiation: through the steps of the inner solver."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.linalg import vector_norm
from torch.utils._pytree import tree_flatten, tree_unflatten

from metalearn.bilevel.estimators.base import Estimate, Estimator, bind_inner_gradient, check_result, is_deterministic
from metalearn.bilevel.oracles import Oracles, Sample, independence_error, sum_losses
from metalearn.bilevel.prepared import Prepared
from metalearn.bilevel.solvers.growth import check_growth, measure_growth
from metalearn.bilevel.solvers.inner import Gradient
from metalearn.bilevel.trees import all_finite
from metalearn.bilevel.unrolled import count_step
from metalearn.checks import check_choice, check_whole
from metalearn.errors import ConfigError
from metalearn.inner.memory import MEMORY_MODES, MemoryMode, gradient

__all__ = ["ITD"]


@dataclass(frozen=True, kw_only=True)
class ITD(Estimator):
    """ITD-BiO: ``G = d f(x, y_D(x)) / dx`` by reverse mode through inner steps (arXiv 2108.00330, chapter 2).

    The start ``y_0`` is a constant; ``truncate`` goes back through the last steps alone (Shaban et al. 2019). No strong convexity
    is needed, but of a deterministic problem an inner gradient that has grown a thousandfold is an error.

    The error does not vanish for a fixed ``D``: on a quadratic it is ``-C' (I - a A)^D A^-1 grad_y f``. A step counts one product
    with ``J``, and all but the first one with ``H``. What depends on ``x`` alone, such as features, is gone back through once if
    the problem's ``prepare`` makes it.

    Attributes:
        inner: the solver of the inner problem, which takes a number of steps.
        truncate: how many steps are differentiated through, from the last one backwards; ``None`` for all.
        memory: what is kept of a step: ``"store"`` keeps its graph. ``"remat"`` keeps the iterate and computes the step
            again. ``"mixed"`` does so by forward-over-reverse products.

    Example:
        >>> import torch
        >>> from metalearn.bilevel import ITD, GradientDescent, hypergradient, quadratic
        >>> made = quadratic(size=5, outer_size=3, kappa=10.0, seed=0)
        >>> x = torch.ones(3, dtype=torch.float64)
        >>> estimator = ITD(inner=GradientDescent(step_size=1.0, steps=200))
        >>> value = hypergradient(made.problem, x, estimator=estimator).value
        >>> torch.allclose(value, made.hypergradient(x))
        True
    """

    truncate: int | None = None
    memory: MemoryMode = "store"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.inner is None or not self.inner.steps:
            raise ConfigError(
                f"ITD(inner={self.inner}), but it differentiates through a given number of inner steps, at least 1; use "
                "inner=GradientDescent(step_size=..., steps=...)"
            )
        if self.truncate is not None:
            check_whole("truncate", self.truncate, remedy="use None for all", owner="ITD", loose=True)
            if not 1 <= self.truncate <= self.inner.steps:
                raise ConfigError(
                    f"ITD(truncate={self.truncate}), but it must be from 1 to the {self.inner.steps} inner steps; use "
                    "None for all"
                )
        check_choice("memory", self.memory, MEMORY_MODES, owner="ITD")

    def estimate(self, oracles: Oracles, x: Tensor, y: Tensor, v: Tensor | None, step: int) -> Estimate:
        assert self.inner is not None
        assert self.inner.steps is not None
        count = self.inner.steps
        kept = count if self.truncate is None else self.truncate
        start = y = last = y.detach()
        sizes: list[Tensor] = []
        early = _record_sizes(bind_inner_gradient(oracles, x, step), sizes, count)
        y, last = self.inner.unroll(early, y, last, 0, count - kept)
        with torch.enable_grad():
            prepared = Prepared(oracles, x.detach().requires_grad_())
            late = _record_sizes(self._bind_gradient(oracles, prepared, step), sizes, count)
            end, _ = self.inner.unroll(late, y, last, count - kept, kept)
        y = end.detach()
        if not all_finite(y):
            # raises, and says at which inner step
            self.inner.solve(bind_inner_gradient(oracles, x, step), start, oracles.outer_step(step))
        change = None
        if sizes and is_deterministic(oracles):
            change = measure_growth(sizes[0], sizes[-1])
            check_growth(sizes[0], sizes[-1], count - 1, self.inner.step_size, oracles.outer_step(step))
        if torch.equal(y, start):
            bind_inner_gradient(oracles, x, step)(y, 0)  # raises if the inner loss has no gradient
        outer = oracles.outer_gradient(x, y, oracles.sample("outer", step))
        value = (outer.of_x + prepared.pull_back(end, outer.of_y)) / oracles.averages
        check_result(oracles, x, y, outer, value, step)
        return Estimate(value, y, None, outer.losses, inner_steps=count, growth=change)

    def _bind_gradient(self, oracles: Oracles, prepared: Prepared, step: int) -> Gradient:
        """The inner gradient, through which the hypergradient passes."""

        def evaluate(y: Tensor, index: int) -> Tensor:
            sample = prepared.of(oracles.sample("inner", step, index))
            features, join = _take_apart(sample)

            def objective(adapted: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
                losses = oracles.inner_losses(others[0], adapted[0], join(others[1:]), twice=True)
                if adapted[0].requires_grad and not losses.requires_grad:
                    raise independence_error()
                return sum_losses(losses)

            point = y.detach().requires_grad_() if self.memory == "store" and not y.requires_grad else y
            (slope,) = gradient(objective, [point], [prepared.x, *features], 2, self.memory)
            return count_step(slope, y, partial(oracles.count, sample=sample))

        return evaluate


def _take_apart(sample: Sample) -> tuple[list[Tensor], Callable[[Sequence[Tensor]], Sample]]:
    """The tensors of a sample that were made of ``x``, and the sample as a function of them: a memory mode recomputes it."""
    if not sample.is_prepared:
        return [], lambda _: sample
    values, spec = tree_flatten(sample.data)
    places = [place for place, value in enumerate(values) if isinstance(value, Tensor) and value.requires_grad]

    def join(features: Sequence[Tensor]) -> Sample:
        again = list(values)
        for place, value in zip(places, features, strict=True):
            again[place] = value
        return sample._replace(data=tree_unflatten(again, spec))

    return [values[place] for place in places], join


def _record_sizes(gradient: Gradient, sizes: list[Tensor], steps: int) -> Gradient:
    """The same, which writes down the norms of the first and of the last of ``steps`` gradients."""

    def evaluate(y: Tensor, index: int) -> Tensor:
        value = gradient(y, index)
        if index in (0, steps - 1):
            sizes.append(vector_norm(value.detach(), dim=-1))
        return value

    return evaluate
