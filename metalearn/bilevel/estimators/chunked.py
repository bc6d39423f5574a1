"""Problems in chunks: less memory for more time."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from metalearn.bilevel.estimators.base import Estimate, Estimator
from metalearn.bilevel.oracles import Oracles
from metalearn.bilevel.problem import Constants
from metalearn.bilevel.streams import Draw, Fixed, Stream
from metalearn.bilevel.trees import Tree
from metalearn.checks import UNBOUNDED, check_kind, check_whole
from metalearn.errors import ConfigError

__all__ = ["Chunked"]


@dataclass(frozen=True, kw_only=True)
class Chunked(Estimator):
    """An estimator on one chunk of the ``B`` problems after the other, for the memory of one chunk.

    The hypergradient is the same. It takes longer, since operations are more and smaller. With a tolerance each chunk stops on
    its own.

    Attributes:
        estimator: the estimator of a chunk. ``inner`` is its inner solver.
        size: how many problems a chunk has. The last one takes what is left.

    Example:
        >>> import torch
        >>> from metalearn.bilevel import AID, BilevelProblem, Chunked, GradientDescent, hypergradient
        >>> problem = BilevelProblem(  # six problems that share x
        ...     outer_loss=lambda x, y, batch: (y - 3).square().sum() / 2,
        ...     inner_loss=lambda x, y, batch: (y - x).square().sum() / 2,
        ...     init_inner=lambda x: x.new_zeros(6, 1),
        ...     batched=6,
        ... )
        >>> estimator = Chunked(estimator=AID(inner=GradientDescent(step_size=1.0, steps=1)), size=2)
        >>> hypergradient(problem, torch.tensor([1.0]), estimator=estimator).value
        tensor([-2.])
    """

    estimator: Estimator
    size: int

    def __post_init__(self) -> None:
        check_kind("the estimator of Chunked", self.estimator, Estimator, "use AID(...) or another one")
        check_whole("size", self.size, 1, UNBOUNDED, "use 4", owner="Chunked", loose=True)
        object.__setattr__(self, "size", int(self.size))
        if self.inner is not None and self.inner != self.estimator.inner:
            raise ConfigError(
                f"Chunked(inner={self.inner}), but the estimator solves the inner problem by {self.estimator.inner}; give "
                "inner to the estimator alone"
            )
        object.__setattr__(self, "inner", self.estimator.inner)

    def check(self, constants: Constants) -> None:
        self.estimator.check(constants)

    def estimate(self, oracles: Oracles, x: Tensor, y: Tensor, v: Tensor | None, step: int) -> Estimate:
        count = oracles.problem.batched
        if count is None or count <= self.size:
            return self.estimator.estimate(oracles, x, y, v, step)
        shared = oracles.problem.shared_x
        value, parts = torch.zeros_like(x), []
        for first in range(0, count, self.size):
            chosen = slice(first, min(first + self.size, count))
            of_x, of_v = x if shared else x[chosen], None if v is None else v[chosen]
            part = self.estimator.estimate(_restrict(oracles, chosen), of_x, y[chosen], of_v, step)
            if shared:
                value += part.value * (len(part.y) / count)
            else:
                value[chosen] = part.value
            parts.append(part._replace(value=value))
        return Estimate(
            value,
            torch.cat([part.y for part in parts]),
            _join([part.v for part in parts]),
            torch.cat([part.losses for part in parts]),
            _join([part.inner_residual for part in parts]),
            _join([part.dual_residual for part in parts]),
            max(part.inner_steps for part in parts),
            max(part.iterations for part in parts),
            _join([part.growth for part in parts]),
        )


@dataclass(frozen=True)
class _Part:
    """A chunk's share of another stream's batches."""

    stream: Stream
    chosen: slice

    def __call__(self, draw: Draw) -> Tree:
        return _take(self.stream(draw), self.chosen)

    def samples(self, draw: Draw) -> int:
        samples = getattr(self.stream, "samples", None)
        return draw.size or 1 if samples is None else samples(draw)


def _restrict(oracles: Oracles, chosen: slice) -> Oracles:
    """These problems alone, counted in the same place."""
    problem = oracles.problem
    many = chosen.stop - chosen.start
    stream: Any = problem.stream
    if stream is not None and not problem.shared_batch:
        if isinstance(stream, Fixed):  # one object at all draws, as it was before
            stream = Fixed(_take(stream.outer, chosen), _take(stream.inner, chosen))
        else:
            stream = _Part(stream, chosen)
    x = oracles.x if problem.shared_x else dataclasses.replace(oracles.x, problems=many)
    y = dataclasses.replace(oracles.y, problems=many)
    part = Oracles(dataclasses.replace(problem, batched=many, stream=stream), x, y, oracles.counts, oracles.seed)
    part.draws = oracles.draws
    return part


def _take(batch: Tree, chosen: slice) -> Tree:
    return tree_map(lambda leaf: leaf[chosen], batch)


def _join(tensors: list[Tensor | None]) -> Tensor | None:
    known = [tensor for tensor in tensors if tensor is not None]
    return torch.cat(known) if known else None
