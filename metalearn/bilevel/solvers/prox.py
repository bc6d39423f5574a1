"""Proximal operators ``prox_{s h}(x) = argmin_z h(z) + |z - x|^2/(2 s)`` of the simple terms that may be added to ``Phi``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from metalearn.bilevel.trees import Tree
from metalearn.checks import check_number, check_whole
from metalearn.errors import ConfigError, ShapeError

__all__ = ["L1", "Box", "GroupL1", "Prox"]


class Prox(ABC):
    """A convex term ``h`` by its value and its proximal operator, tensor by tensor.

    Example:
        >>> import torch
        >>> from metalearn.bilevel import L1
        >>> L1(0.5)({"a": torch.tensor([2.0])}, step_size=1.0)
        {'a': tensor([1.5000])}
    """

    def __call__(self, x: Tree, step_size: float) -> Tree:
        """``prox_{step_size h}(x)``, a tree like ``x``."""
        return tree_map(lambda leaf: self.of_tensor(leaf, step_size), x)

    def value(self, x: Tree) -> Tensor:
        """``h(x)``, ``[]``."""
        return torch.stack([self.value_of_tensor(leaf) for leaf in tree_leaves(x)]).sum()

    @abstractmethod
    def of_tensor(self, x: Tensor, step_size: float) -> Tensor:
        """The operator on one tensor."""

    @abstractmethod
    def value_of_tensor(self, x: Tensor) -> Tensor:
        """``h`` of one tensor, ``[]``."""


@dataclass(frozen=True)
class L1(Prox):
    """``h = weight |x|_1``: soft thresholding.

    Attributes:
        weight: the factor of the penalty, at least 0.

    Example:
        >>> import torch
        >>> from metalearn.bilevel import L1
        >>> L1(weight=0.5)(torch.tensor([2.0, -0.25, -1.0]), step_size=1.0)
        tensor([ 1.5000, -0.0000, -0.5000])
    """

    weight: float

    def __post_init__(self) -> None:
        check_number("weight", self.weight, "use 0.01", least=0, finite=False, loose=True)

    def of_tensor(self, x: Tensor, step_size: float) -> Tensor:
        return x.sign() * (x.abs() - step_size * self.weight).clamp(min=0)

    def value_of_tensor(self, x: Tensor) -> Tensor:
        return self.weight * x.abs().sum()


@dataclass(frozen=True)
class GroupL1(Prox):
    """``h = weight sum_i |x_i|_2`` over the slices ``x_i`` along an axis: each shrinks as a whole.

    Attributes:
        weight: the factor of the penalty, at least 0.
        dim: the axis that counts the groups.

    Example:
        >>> import torch
        >>> from metalearn.bilevel import GroupL1
        >>> GroupL1(weight=2.5)(torch.tensor([[3.0, 4.0], [1.0, 1.0]]), step_size=1.0)
        tensor([[1.5000, 2.0000],
                [0.0000, 0.0000]])
    """

    weight: float
    dim: int = 0

    def __post_init__(self) -> None:
        check_number("weight", self.weight, "use 0.01", least=0, finite=False, loose=True)
        check_whole("dim", self.dim, remedy="use 0", owner="GroupL1", loose=True)

    def _measure_groups(self, x: Tensor) -> Tensor:
        if not -x.ndim <= self.dim < x.ndim:
            raise ShapeError(
                f"GroupL1(dim={self.dim}) meets a tensor of shape {list(x.shape)}, but it must be one of its {x.ndim} axes; use 0"
            )
        rest = [axis for axis in range(x.ndim) if axis != self.dim % x.ndim]
        return torch.linalg.vector_norm(x, dim=rest, keepdim=True) if rest else x.abs()

    def of_tensor(self, x: Tensor, step_size: float) -> Tensor:
        norms = self._measure_groups(x)
        kept = norms > step_size * self.weight
        return x * torch.where(kept, 1 - step_size * self.weight / torch.where(kept, norms, 1.0), 0.0)

    def value_of_tensor(self, x: Tensor) -> Tensor:
        return self.weight * self._measure_groups(x).sum()


@dataclass(frozen=True)
class Box(Prox):
    """``h = 0`` where every entry is from ``low`` to ``high``, infinite elsewhere: the projection.

    Attributes:
        low: the smallest value of an entry.
        high: the largest value of an entry.

    Example:
        >>> import torch
        >>> from metalearn.bilevel import Box
        >>> Box(low=-1.0, high=1.0)(torch.tensor([2.0, 0.5, -3.0]), step_size=1.0)
        tensor([ 1.0000,  0.5000, -1.0000])
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        for name, remedy in (("low", "use -1.0"), ("high", "use 1.0")):
            check_number(name, getattr(self, name), remedy, finite=False, owner="Box", loose=True)
        if not self.low <= self.high:
            raise ConfigError(f"Box(low={self.low}, high={self.high}), but low must not be above high; swap them")

    def of_tensor(self, x: Tensor, step_size: float) -> Tensor:
        return x.clamp(self.low, self.high)

    def value_of_tensor(self, x: Tensor) -> Tensor:
        inside = ((x >= self.low) & (x <= self.high)).all()
        return torch.where(inside, 0.0, float("inf")).to(x)
