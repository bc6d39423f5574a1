"""Sparse matrices whose products can be differentiated any number of times."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["SparseRows", "with_transpose"]


class SparseRows:
    """A sparse matrix beside its transpose, so that products with it can be differentiated any number of times.

    Attributes:
        matrix: CSR ``[n, features]``.
        transposed: CSR ``[features, n]``.

    Example:
        >>> import torch
        >>> from metalearn.bilevel import SparseRows
        >>> rows = SparseRows(torch.eye(3).to_sparse())
        >>> rows @ torch.ones(3, 1)
        tensor([[1.],
                [1.],
                [1.]])
    """

    def __init__(self, matrix: Tensor) -> None:
        """Transpose a matrix in any sparse layout, once; one of 16 bits is widened, since few devices multiply it."""
        if matrix.dtype in (torch.float16, torch.bfloat16):
            matrix = matrix.float()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
            self.matrix = matrix if matrix.layout is torch.sparse_csr else matrix.to_sparse_csr()
            self.transposed = matrix.to_sparse_coo().t().coalesce().to_sparse_csr()

    @property
    def shape(self) -> torch.Size:
        """``[n, features]``."""
        return self.matrix.shape

    def __matmul__(self, dense: Tensor) -> Tensor:
        """``X D``, ``[n, k]``, for ``D`` ``[features, k]``."""
        return _Product.apply(self.matrix, self.transposed, dense)


class _Product(torch.autograd.Function):
    """``A D`` for a constant sparse ``A``; its backward pass is the same function of the transpose."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, transposed: Tensor, dense: Tensor) -> Tensor:
        ctx.pair = transposed, matrix
        # autocast would take both to 16 bits, for which there is no sparse product on the CPU
        with torch.autocast(dense.device.type, enabled=False):
            return (matrix @ dense.to(matrix.dtype)).to(dense.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return None, None, _Product.apply(*ctx.pair, gradients[0])


_KNOWN = WeakTensorKeyDictionary()
"""Matrices that a loader hands out again and again, with their transposes."""


def with_transpose(x: Any) -> Any:
    """Return what products are taken with: a dense tensor as it is, a sparse one beside its transpose."""
    if not isinstance(x, Tensor) or x.layout is torch.strided:
        return x
    if x not in _KNOWN:
        _KNOWN[x] = SparseRows(x)
    return _KNOWN[x]
