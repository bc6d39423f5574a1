"""A product of filters with image patches, max-pooled, scaled, shifted and rectified, in pieces that stay in the caches.

With ``z`` the maxima of ``W c`` over 2x2 places, ``s`` the scale and ``b`` the shift of a channel, ``y = relu(s z + b)``. What is
kept of it is ``z``, its places and ``y``, a quarter of the product's size each. With ``g`` the gradient where ``y`` is positive,
and ``U`` for un-pooling, the gradients are::

    W: (U s g) c'    c: W' (U s g)    s: sum g z    b: sum g
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from metalearn.inner.kernels.batch_norm import as_rows, choose_accumulator, choose_places, pick, pool
from metalearn.inner.kernels.conv import as_channels_last, merge
from metalearn.inner.kernels.pooled_product import (
    Columns,
    Images,
    allocate_pooled,
    cut_tasks,
    of_tasks,
    unpool_product,
)

__all__ = ["PooledBlock", "PooledProduct"]


class PooledProduct(torch.autograd.Function):
    """``(x, w, c)`` -> 2x2 maxima of the product less ``c``, their places, and the sum of the squares of the product less ``c``.

    Shapes: ``x`` and ``w`` as the product has them; ``c`` ``[B, D]``, or ``None`` where nothing is subtracted and no squares are
    summed. None of the three has a gradient: :class:`PooledBlock` knows what the maxima depend on.
    """

    @staticmethod
    def forward(
        seen: Tensor, filters: Tensor, centre: Tensor | None, product: Columns | Images
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        tasks, images = seen.shape[:2]
        z = allocate_pooled(filters, tasks, images, filters.shape[1], product.size)
        index = torch.empty_like(z, dtype=choose_places(product.size))
        squares = None if centre is None else torch.zeros_like(centre)
        for piece in cut_tasks(seen, filters, product):
            own = piece[0]
            y = product.multiply(seen[piece], of_tasks(filters, own), None if centre is None else centre[own])
            z[piece], index[piece] = pool(y)
            if squares is not None:
                rows = as_rows(y).to(choose_accumulator(y))
                squares[own] += (rows * rows).sum(1)
        return z, index, squares

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor | None, ...]) -> None:
        ctx.mark_non_differentiable(*(x for x in output if x is not None))

    @staticmethod
    def backward(ctx: Any, *_: Any) -> tuple[Any, ...]:
        return (None,) * 4

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
        tasks = info.batch_size
        seen, filters = (merge(args[i], in_dims[i], tasks) for i in range(2))
        centre = None if args[2] is None else merge(args[2], in_dims[2], tasks).expand(tasks, -1)
        output = PooledProduct.apply(seen.expand(tasks, *seen.shape[1:]), filters, centre, args[3])
        return tuple(x if x is None else x.unsqueeze(1) for x in output), tuple(
            None if x is None else 0 for x in output
        )


class PooledBlock(torch.autograd.Function):
    """``(x, w, s, b, z, places) -> relu(s z + b)``, where ``z`` and its places are what :class:`PooledProduct` found.

    Scale and shift are ``[B, D]``, in the accumulator's dtype.
    """

    @staticmethod
    def forward(
        seen: Tensor, filters: Tensor, scale: Tensor, shift: Tensor, z: Tensor, index: Tensor, relu: bool,
        product: Columns | Images,
    ) -> Tensor:  # fmt: skip
        y = torch.addcmul(_along(shift, z), z, _along(scale, z))
        return y.relu_() if relu else y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        seen, filters, scale, _, z, index, relu, ctx.product = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(seen, filters, scale, z, index, output if relu else None)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Any, ...]:
        if grad is None:
            return (None,) * 8
        return *_Gradient.apply(grad, *ctx.saved_tensors, ctx.product, *ctx.needs_input_grad[:2]), *(None,) * 4

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
        tasks = info.batch_size
        tensors = [merge(args[i], in_dims[i], tasks) for i in range(6)]
        seen, filters, *others = (x if i == 1 else x.expand(tasks, *x.shape[1:]) for i, x in enumerate(tensors))
        return PooledBlock.apply(seen, filters, *others, *args[6:]).unsqueeze(1), 0


class _Gradient(torch.autograd.Function):
    """The gradients of :class:`PooledBlock` by patches, filters, scale and shift."""

    @staticmethod
    def forward(
        ctx: Any, grad: Tensor, seen: Tensor, filters: Tensor, scale: Tensor, z: Tensor, index: Tensor,
        y: Tensor | None, product: Columns | Images, of_seen: bool, of_filters: bool,
    ) -> tuple[Tensor | None, Tensor | None, Tensor, Tensor]:  # fmt: skip
        ctx.save_for_backward(grad, seen, filters, scale, z, index, y)
        ctx.product = product
        ctx.set_materialize_grads(False)
        total = _Total(seen, filters, product, of_seen, of_filters)
        s1, s0 = torch.zeros_like(scale), torch.zeros_like(scale)
        for piece in cut_tasks(seen, filters, product):
            tasks = piece[0]
            g = _where_positive(grad, y, piece)
            s0[tasks] += _sum(g)
            s1[tasks] += _sum(g * z[piece])
            total.add(piece, g * _along(scale[tasks], g), index, seen, filters)
        return total.of_seen, total.of_filters, s1, s0

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, along_seen: Tensor | None, along_filters: Tensor | None, a: Tensor | None, b: Tensor | None
    ) -> tuple[Any, ...]:
        """From cotangents ``v``, ``u``, ``a``, ``b`` of the four gradients.

        With ``p`` the product of the patches with ``u``, and of ``v`` with the filters, at the places of the maxima, they make
        the scalar ``sum g (s p + a z + b)`` of the gradients, in which ``z`` depends on patches and filters.
        """
        grad, seen, filters, scale, z, index, y = ctx.saved_tensors
        product, needs = ctx.product, ctx.needs_input_grad
        total = _Total(seen, filters, product, needs[1], needs[2])
        of_grad, of_scale = torch.empty_like(z), torch.zeros_like(scale)
        for piece in cut_tasks(seen, filters, product):
            tasks, places = piece[0], index[piece]
            g = _where_positive(grad, y, piece)
            own, p = of_grad[piece], None
            if along_filters is not None:
                p = pick(product.multiply(seen[piece], of_tasks(along_filters, tasks)), places)
            if along_seen is not None:
                more = pick(product.multiply(along_seen[piece], of_tasks(filters, tasks)), places)
                p = more if p is None else p.add_(more)
            own[:] = 0.0 if b is None else _along(b[tasks], z)
            if a is not None:
                own.addcmul_(z[piece], _along(a[tasks], z))
                total.add(piece, g * _along(a[tasks], g), index, seen, filters)
            if p is not None:
                own.addcmul_(p, _along(scale[tasks], z))
                of_scale[tasks] += _sum(g * p)
                total.add(piece, g * _along(scale[tasks], g), index, along_seen, along_filters)
            if y is not None:
                own[:] = _where_positive(of_grad, y, piece)
        return of_grad, total.of_seen, total.of_filters, of_scale, *(None,) * 6


class _Total:
    """Gradients of patches and filters, filled piece by piece."""

    def __init__(
        self, seen: Tensor, filters: Tensor, product: Columns | Images, wants_seen: bool, wants_filters: bool
    ) -> None:
        self._seen, self._filters, self._product = seen, filters, product
        self.of_seen = torch.zeros_like(seen) if wants_seen else None
        self._sum = torch.zeros_like(filters, dtype=choose_accumulator(filters)) if wants_filters else None

    def add(
        self, piece: tuple[slice, slice], pooled: Tensor, index: Tensor, seen: Tensor | None, filters: Tensor | None
    ) -> None:
        """Add the gradients of the pooled products of ``seen`` with the filters, and of the patches with ``filters``."""
        tasks = piece[0]
        wants_seen = self.of_seen is not None and filters is not None
        wants_filters = self._sum is not None and seen is not None
        if not wants_seen and not wants_filters:
            return
        seen, filters = self._seen if seen is None else seen, self._filters if filters is None else filters
        full = unpool_product(pooled, index[piece], self._product.size)
        of_seen, of_filters = self._product.differentiate(
            full, seen[piece], of_tasks(filters, tasks), wants_seen, wants_filters
        )
        if self.of_seen is not None and of_seen is not None:
            self.of_seen[piece] += of_seen
        if self._sum is not None and of_filters is not None:
            of_tasks(self._sum, tasks).add_(of_filters)

    @property
    def of_filters(self) -> Tensor | None:
        """The gradient of the filters."""
        return None if self._sum is None else self._sum.to(self._filters.dtype)


def _along(factor: Tensor, like: Tensor) -> Tensor:
    """``[B, D]`` over ``[B, n, D, H, W]``."""
    return factor.to(like.dtype)[:, None, :, None, None]


def _sum(x: Tensor) -> Tensor:
    """``[B, n, D, H, W]`` summed to ``[B, D]``."""
    return as_rows(x).sum(1, dtype=choose_accumulator(x))


def _where_positive(grad: Tensor, y: Tensor | None, piece: tuple[slice, slice]) -> Tensor:
    g = as_channels_last(grad[piece])
    return g if y is None else torch.ops.aten.threshold_backward(g, y[piece], 0)
