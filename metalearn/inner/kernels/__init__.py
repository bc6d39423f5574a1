"""Operators of the inner loop whose first and second derivatives are written out."""

from metalearn.inner.kernels.conv import Geometry, conv2d, has_short_patches
from metalearn.inner.kernels.images import first_block
from metalearn.inner.kernels.mode import OwnOperators, is_own, own_kernels
from metalearn.inner.kernels.norm import normalise

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
