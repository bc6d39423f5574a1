"""The first block of a network: convolution of images with few channels, batch normalisation, 2x2 max-pooling, rectification.

Its output before pooling is the largest tensor of a small network, and most of its time. It is a product ``W c`` of the filters
with the image patches ``c`` (columns of ``C h w`` values), so that its mean and variance follow from those of the patches::

    mean = W mean(c)    variance = diag(W cov(c) W')

both in float64, and a scale per channel commutes with max-pooling up to its sign. So the product is made, pooled and forgotten:
it is never normalised, never passed over for statistics, and not kept for the backward passes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from metalearn.inner.kernels.batch_norm import as_images, as_rows, choose_accumulator, pick, pool, unpool
from metalearn.inner.kernels.conv import Geometry, compute_output_size, find_autocast_kind, merge, unfold

__all__ = ["cut_images", "first_block"]

AT_ONCE = 1 << 19
"""Values of the product that are made at once on a CPU: 2 MB in float32."""
FLAT = 4.0
"""Of images, from this quotient of mean and standard deviation on."""


def first_block(
    x: Tensor, filters: Tensor, geometry: Geometry, weight: Tensor | None, bias: Tensor | None, eps: float, relu: bool
) -> Tensor:
    """``max_pool2d(batch_norm(conv2d(x, filters)), 2)``, rectified if asked, with the statistics of the convolution itself.

    Args:
        x: ``[n, C, H, W]``, the examples of one task; under ``torch.func.vmap``, of each task.
        filters: ``[D, C, h, w]``; its patches should be shorter than its number of filters.
        geometry: of the convolution, in one group.
        weight: ``[D]``, or ``None`` for 1.
        bias: ``[D]``, or ``None`` for 0.
        eps: added to the variance.
        relu: whether rectification follows.
    """
    kind = find_autocast_kind(x)
    with torch.autocast(x.device.type, enabled=False):
        flat = filters.flatten(1)
        columns = unfold(_darken(x, geometry.padding), filters, geometry._replace(padding=(0, 0)))
        mean, variance = _compute_moments(columns, flat)
        scale = torch.rsqrt(variance + eps)
        if weight is not None:
            scale = scale * weight
        shift = -mean * scale if bias is None else bias - mean * scale
        sign = torch.where(scale.detach() < 0, -1.0, 1.0).to(flat.dtype)
        signed = flat * sign[:, None]
        kind = x.dtype if kind is None else kind
        size = compute_output_size(x, filters, geometry)
        z = _PooledProduct.apply(columns.to(kind)[None], signed.to(kind)[None], size)[0].squeeze(0)
        y = torch.addcmul(shift.to(z.dtype).view(-1, 1, 1), z, (scale * sign).to(z.dtype).view(-1, 1, 1))
        return y.relu_() if relu else y


def _darken(x: Tensor, padding: tuple[int, int]) -> Tensor:
    """``x``, padded, less the mean of each channel where that is above ``FLAT`` times the deviation.

    Products are then rounded by the images' contrast in the place of their brightness.

    A shift of all that a filter sees shifts its output, which normalisation takes away: to every derivative it is a constant.
    Nearly all pixels are then between half and twice the mean, so that their differences to it are exact. Otherwise nothing is
    subtracted: what lies near zero has digits to lose.
    """
    high, wide = padding
    pixels = x.detach().to(_choose_widest(x))
    mean = pixels.mean((0, 2, 3), keepdim=True)
    variance = (pixels - mean).square().mean((0, 2, 3), keepdim=True)
    level = torch.where(mean * mean > FLAT**2 * variance, mean, 0.0)[0]
    x = F.pad(x.to(choose_accumulator(x)), (wide, wide, high, high))
    return x - level.to(x.dtype)


def _compute_moments(columns: Tensor, flat: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance ``[D]`` of the product of the filters ``[D, P]`` with patches ``[n, P, H W]``.

    An edge filter answers a smooth image by a small part of the image's own spread, and its variance is the square of that part:
    in float32 nothing would be left of it. Where less is left than the rounding of its terms, it is raised to that, so that it
    is never negative.
    """
    kind = _choose_widest(columns)
    flat = flat.to(kind)
    firsts, seconds = [], []
    for part in cut_images(columns[None], len(columns[0])):
        patches = columns[part].to(kind)
        firsts.append(patches.sum((0, 2)))
        seconds.append(torch.bmm(patches, patches.transpose(1, 2)).sum(0))
    count = columns.shape[0] * columns.shape[2]
    centre = torch.stack(firsts).sum(0) / count
    spread = torch.stack(seconds).sum(0) / count - centre[:, None] * centre
    variance = ((flat @ spread) * flat).sum(1)
    lost = torch.finfo(kind).eps * (flat * flat) @ spread.diagonal()
    return flat @ centre, variance + (lost - variance).clamp_min(0).detach()


def _choose_widest(x: Tensor) -> torch.dtype:
    """float64, where the device has it."""
    return torch.float32 if x.device.type == "mps" else torch.float64


def _multiply(columns: Tensor, flat: Tensor, size: tuple[int, int]) -> Tensor:
    """``[B, n, P, H W]`` patches times ``[B, D, P]`` filters: ``[B, n, D, H, W]``, channels last."""
    tasks, count = columns.shape[:2]
    across = flat.transpose(1, 2)[:, None].expand(tasks, count, *flat.shape[:0:-1]).flatten(0, 1)
    rows = torch.bmm(columns.flatten(0, 1).transpose(1, 2), across)
    return rows.view(tasks, count, *size, flat.shape[1]).permute(0, 1, 4, 2, 3)


class _PooledProduct(torch.autograd.Function):
    """2x2 maxima of the product, and their places."""

    @staticmethod
    def forward(columns: Tensor, flat: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        parts = [pool(_multiply(columns[:, rows], flat, size)) for rows in cut_images(columns, flat.shape[1])]
        return parts[0] if len(parts) == 1 else (_join([z for z, _ in parts]), _join([index for _, index in parts]))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        columns, flat, ctx.size = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(columns, flat, output[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Any, ...]:
        if grad is None:
            return None, None, None
        return *_Gradient.apply(grad, *ctx.saved_tensors, ctx.size, *ctx.needs_input_grad[:2]), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], columns: Tensor, flat: Tensor, size: tuple[int, int]) -> Any:
        tasks = info.batch_size
        columns, flat = merge(columns, in_dims[0], tasks), merge(flat, in_dims[1], tasks)
        z, index = _PooledProduct.apply(columns.expand(tasks, *columns.shape[1:]), flat, size)
        return (z.unsqueeze(1), index.unsqueeze(1)), (0, 0)


class _Gradient(torch.autograd.Function):
    """``(g, c, W) -> (W' G, G c')`` with ``G`` the image of ``g`` under un-pooling: bilinear in each pair."""

    @staticmethod
    def forward(
        ctx: Any, grad: Tensor, columns: Tensor, flat: Tensor, index: Tensor, size: tuple[int, int], of_columns: bool,
        of_flat: bool,
    ) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
        ctx.save_for_backward(grad, columns, flat, index)
        ctx.size = size
        ctx.set_materialize_grads(False)
        of_each: list[Tensor] = []
        total = None
        for part in cut_images(columns, flat.shape[1]):
            rows = _unpooled_rows(grad[:, part], index[:, part], size)
            if of_columns:
                of_each.append(_columns_gradient(rows, flat))
            if of_flat:
                of_part = _filters_gradient(rows, columns[:, part], flat)
                total = of_part if total is None else total.add_(of_part)
        return torch.cat(of_each, 1) if of_columns else None, total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, along_columns: Tensor | None, along_flat: Tensor | None) -> tuple[Any, ...]:
        grad, columns, flat, index = ctx.saved_tensors
        of_grad = of_columns = of_flat = None
        if along_flat is not None:
            of_grad = pick(_multiply(columns, along_flat, ctx.size), index)
        if along_columns is not None:
            more = pick(_multiply(along_columns, flat, ctx.size), index)
            of_grad = more if of_grad is None else of_grad + more
        if ctx.needs_input_grad[1] and along_flat is not None:
            of_columns = _columns_gradient(_unpooled_rows(grad, index, ctx.size), along_flat)
        if ctx.needs_input_grad[2] and along_columns is not None:
            of_flat = _filters_gradient(_unpooled_rows(grad, index, ctx.size), along_columns, flat)
        return of_grad, of_columns, of_flat, *(None,) * 4


def cut_images(columns: Tensor, width: int) -> list[slice]:
    """Ranges of images for each of which ``width`` values a place are made and forgotten, while they are in the caches."""
    tasks, count, _, places = columns.shape
    step = count if columns.device.type != "cpu" else max(1, AT_ONCE // (tasks * places * width))
    return [slice(first, first + step) for first in range(0, count, step)]


def _join(parts: list[Tensor]) -> Tensor:
    """Join ``[B, n, D, H, W]`` over images, channels last."""
    return torch.cat([part.permute(0, 1, 3, 4, 2) for part in parts], 1).permute(0, 1, 4, 2, 3)


def _unpooled_rows(grad: Tensor, index: Tensor, size: tuple[int, int]) -> Tensor:
    """``[B, n, H W, D]``."""
    tasks, count, width = grad.shape[:3]
    like = grad.new_empty(tasks, count, *size, width).permute(0, 1, 4, 2, 3)  # tells the shape and order, is never read
    full = unpool(as_images(as_rows(grad), grad), index, like)
    return as_rows(full).view(tasks, count, size[0] * size[1], width)


def _columns_gradient(rows: Tensor, flat: Tensor) -> Tensor:
    return torch.matmul(rows, flat[:, None]).transpose(-1, -2)


def _filters_gradient(rows: Tensor, columns: Tensor, flat: Tensor) -> Tensor:
    of_images = torch.bmm(columns.flatten(0, 1), rows.flatten(0, 1)).unflatten(0, columns.shape[:2])
    return of_images.sum((0, 1) if len(flat) == 1 else (1,)).transpose(-1, -2).reshape(flat.shape)
