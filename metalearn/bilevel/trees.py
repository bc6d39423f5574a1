"""Trees of tensors as flat vectors, so that solvers and algorithms know nothing but ``[D]`` or ``[B, D]``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from metalearn.errors import ShapeError

__all__ = ["Layout", "Tree", "all_finite", "check_alike", "dot", "scale"]

Tree = Any
"""A tensor, or a dict, list, tuple or NamedTuple of trees."""


@dataclass(frozen=True)
class Layout:
    """How a tree's tensors lie in a vector.

    Attributes:
        spec: the tree's structure.
        shapes: of its tensors, without the axis of problems.
        problems: the length of that axis, ``None`` where there is none.
    """

    spec: TreeSpec
    shapes: tuple[torch.Size, ...]
    problems: int | None

    @classmethod
    def of(cls, tree: Tree, name: str, problems: int | None = None) -> Layout:
        """The layout of a tree.

        Raises:
            ShapeError: a leaf is not a floating-point tensor, dtypes or devices differ, or the axis of problems is missing.
        """
        leaves, spec = tree_flatten(tree)
        if not leaves:
            raise ShapeError(
                f"{name} is {tree!r}, but it must hold at least one tensor; return a tensor or a dict of them"
            )
        for leaf in leaves:
            if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
                kind = leaf.dtype if isinstance(leaf, Tensor) else type(leaf).__name__
                raise ShapeError(
                    f"{name} holds a {kind}, but all its leaves must be floating-point tensors; close over it"
                )
            if leaf.layout is not torch.strided or leaf.is_meta:
                kind = "tensor on the meta device, which has no data" if leaf.is_meta else f"{leaf.layout} tensor"
                raise ShapeError(f"{name} holds a {kind}, but all its leaves must be dense tensors; use .to_dense()")
            if leaf.dtype != leaves[0].dtype or leaf.device != leaves[0].device:
                raise ShapeError(
                    f"{name} mixes {leaves[0].dtype} on {leaves[0].device} with {leaf.dtype} on {leaf.device}, but "
                    "its tensors must share both; convert them with .to(...)"
                )
            if problems is not None and (leaf.ndim == 0 or len(leaf) != problems):
                raise ShapeError(
                    f"{name} has a tensor of shape {list(leaf.shape)}, but its first axis must be the {problems} "
                    f"problems; give it the shape [{problems}, ...] or change batched="
                )
        if not any(leaf.numel() for leaf in leaves):
            raise ShapeError(f"{name} has no entries, but it must have at least one; check its shape")
        first = 0 if problems is None else 1
        return cls(spec, tuple(leaf.shape[first:] for leaf in leaves), problems)

    def ravel(self, tree: Tree) -> Tensor:
        """The vector ``[D]``, or ``[B, D]``, of a tree."""
        leaves = tree_flatten(tree)[0]
        lead = () if self.problems is None else (self.problems,)
        flat = [leaf.reshape((*lead, shape.numel())) for leaf, shape in zip(leaves, self.shapes, strict=True)]
        return flat[0] if len(flat) == 1 else torch.cat(flat, -1)

    def unravel(self, vector: Tensor) -> Tree:
        """The tree of a vector ``[..., D]``, whose leading axes all tensors keep."""
        if len(self.shapes) == 1:
            if self.spec.is_leaf():
                return vector.reshape((*vector.shape[:-1], *self.shapes[0]))
            pieces: Any = [vector]
        else:
            # one split, since its backward pass is one concatenation
            pieces = vector.split([math.prod(shape) for shape in self.shapes], -1)
        leaves = [piece.reshape((*vector.shape[:-1], *shape)) for piece, shape in zip(pieces, self.shapes, strict=True)]
        return tree_unflatten(leaves, self.spec)


def check_alike(tree: Tree, other: Tree, name: str) -> None:
    """Raise a ShapeError unless two trees are of one dtype on one device."""
    leaf, like = tree_flatten(tree)[0][0], tree_flatten(other)[0][0]
    if (leaf.dtype, leaf.device) != (like.dtype, like.device):
        raise ShapeError(
            f"{name} is {leaf.dtype} on {leaf.device}, but y is {like.dtype} on {like.device}, and they must be alike; "
            "convert it with .to(...)"
        )


def all_finite(*tensors: Tensor) -> bool:
    """Whether no entry is infinite or not a number; one pass and one answer to wait for where that is so."""
    # a sum of finite entries may overflow, but one with others is never finite
    total = sum((tensor.sum() for tensor in tensors[1:]), tensors[0].sum())
    return bool(total.isfinite()) or all(bool(tensor.isfinite().all()) for tensor in tensors)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """The inner product of each problem, ``[]`` or ``[B]``."""
    return (a * b).sum(-1)


def scale(factor: Tensor, vector: Tensor) -> Tensor:
    """``vector`` times one factor a problem."""
    return factor.unsqueeze(-1) * vector
