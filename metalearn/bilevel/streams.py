"""Where stochastic estimators get their data.

A batch is a pure function of what it is for, so that a resumed run sees the same ones.

The analyses of stocBiO, MRBO and VRBO need independent batches for the inner steps, the outer gradient, each Hessian
product and the mixed product; and the same batch again where two points are compared.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from metalearn.bilevel.trees import Tree
from metalearn.checks import check_whole, quote_value
from metalearn.errors import ShapeError

__all__ = ["Draw", "Fixed", "Sampled", "Stream", "Term"]

Term = Literal["inner", "outer", "hessian", "jacobian", "direction"]


class Draw(NamedTuple):
    """What a batch is for.

    Attributes:
        seed: the seed of the run.
        step: the number of the outer step.
        term: the term of the estimator.
        number: the inner step, or the number of the Hessian product or of the direction.
        size: how many examples the batch has; ``None`` for the stream's own default.

    Example:
        >>> from metalearn.bilevel import Draw
        >>> draw = Draw(seed=0, step=3, term="hessian", number=1)
        >>> draw.generator().initial_seed() == draw._replace(size=8).generator().initial_seed()
        True
    """

    seed: int
    step: int
    term: Term
    number: int = 0
    size: int | None = None

    def generator(self) -> torch.Generator:
        """A generator on the CPU that depends on all but the size."""
        digest = hashlib.blake2b(repr(self[:4]).encode(), digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


class Stream(Protocol):
    """Gives the batch of a draw, and says of how many examples it is.

    Example:
        >>> import torch
        >>> from metalearn.bilevel import Draw
        >>> class Noise:
        ...     def __call__(self, draw):
        ...         return torch.randn(self.samples(draw), 8, generator=draw.generator())
        ...     def samples(self, draw):
        ...         return draw.size or 16
        >>> Noise()(Draw(seed=0, step=0, term="inner")).shape
        torch.Size([16, 8])
    """

    def __call__(self, draw: Draw) -> Tree: ...

    def samples(self, draw: Draw) -> int: ...


@dataclass(frozen=True)
class Fixed:
    """The same data at every draw, counted as one sample: a deterministic problem.

    Attributes:
        outer: the data that ``outer_loss`` gets.
        inner: the data that ``inner_loss`` gets.

    Example:
        >>> from metalearn.bilevel import Draw, Fixed
        >>> stream = Fixed(outer="validation data", inner="training data")
        >>> stream(Draw(seed=0, step=0, term="hessian"))
        'training data'
    """

    outer: Any
    inner: Any

    def __call__(self, draw: Draw) -> Tree:
        return self.outer if draw.term == "outer" else self.inner

    def samples(self, draw: Draw) -> int:
        return 1


@dataclass(frozen=True)
class Sampled:
    """Examples drawn without replacement within a batch, and independently across draws.

    Attributes:
        outer: the examples of ``outer_loss``, a tree of tensors ``[n, ...]``.
        inner: the examples of ``inner_loss``, a tree of tensors ``[n, ...]``.
        outer_size: how many examples an outer batch has; ``None`` for all.
        inner_size: how many examples every other batch has; ``None`` for all.
        axis: the axis of the examples. It is 1 where axis 0 is that of problems, which then all draw the same numbers.

    Example:
        >>> import torch
        >>> from metalearn.bilevel import Draw, Sampled
        >>> stream = Sampled(outer=torch.randn(100, 8), inner=torch.randn(500, 8), inner_size=32)
        >>> stream(Draw(seed=0, step=0, term="inner")).shape
        torch.Size([32, 8])
    """

    outer: Tree
    inner: Tree
    outer_size: int | None = None
    inner_size: int | None = None
    axis: int = 0

    def __post_init__(self) -> None:
        for name, size in (("outer_size", self.outer_size), ("inner_size", self.inner_size)):
            if size is not None:
                check_whole(name, size, 1, remedy="use None for all of them", loose=True)
        check_whole("axis", self.axis, remedy="use 0, or 1 where axis 0 is that of problems")
        for name, data in (("outer", self.outer), ("inner", self.inner)):
            leaves = tree_leaves(data)
            if not leaves or not all(isinstance(leaf, Tensor) and leaf.ndim > self.axis for leaf in leaves):
                raise ShapeError(
                    f"the {name} data of Sampled hold {quote_value(data)}, but they must be tensors with an axis {self.axis} of "
                    "examples; stack the examples"
                )
            if len({leaf.shape[self.axis] for leaf in leaves}) > 1 or not leaves[0].shape[self.axis]:
                counts = ", ".join(str(leaf.shape[self.axis]) for leaf in leaves)
                raise ShapeError(
                    f"the {name} data of Sampled have {counts} examples, but all tensors "
                    "must have the same number, at least 1; check how they are built"
                )

    def __call__(self, draw: Draw) -> Tree:
        data, count = self._data(draw)
        size = self.samples(draw)
        if size == count:
            return data  # the same object, so that terms can share what is computed from it
        chosen = torch.randperm(count, generator=draw.generator())[:size]
        return tree_map(lambda leaf: leaf.index_select(self.axis, chosen.to(leaf.device)), data)

    def samples(self, draw: Draw) -> int:
        default = self.outer_size if draw.term == "outer" else self.inner_size
        size = draw.size if draw.size is not None else default
        count = self._data(draw)[1]
        return count if size is None else min(size, count)

    def _data(self, draw: Draw) -> tuple[Tree, int]:
        data = self.outer if draw.term == "outer" else self.inner
        return data, tree_leaves(data)[0].shape[self.axis]
