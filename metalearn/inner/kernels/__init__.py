"""Operators of the inner loop whose first and second derivatives are written out."""

from metalearn.inner.kernels.batch_norm import normalise
from metalearn.inner.kernels.conv import Geometry, conv2d, has_short_patches
from metalearn.inner.kernels.first_block import first_block
from metalearn.inner.kernels.routing import OwnOperators, is_own, own_kernels

__all__ = [
    "Geometry",
    "OwnOperators",
    "conv2d",
    "first_block",
    "has_short_patches",
    "is_own",
    "normalise",
    "own_kernels",
]
