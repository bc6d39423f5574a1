"""Operators of the inner loop whose first and second derivatives are written out."""

from metalearn.inner.kernels.batch_norm import normalise
from metalearn.inner.kernels.conv import Geometry, conv2d
from metalearn.inner.kernels.first_block import first_block, is_first_block
from metalearn.inner.kernels.fully_connected import linear

__all__ = [
    "Geometry",
    "conv2d",
    "first_block",
    "is_first_block",
    "linear",
    "normalise",
]
