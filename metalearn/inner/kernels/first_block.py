"""The first block of a network: convolution of images with few channels, batch normalisation, 2x2 max-pooling, rectification.

Its output before pooling is the largest tensor of a small network, and most of its time. It is a product ``W c`` of the filters
with the image patches ``c`` (of ``C h w`` values), so that its mean and variance follow from those of the patches::

    mean = W mean(c)    variance = diag(W cov(c) W')

both in float64, and a scale per channel commutes with max-pooling up to its sign. So the product is made, pooled and forgotten:
it is never normalised, never passed over for statistics, and not kept for the backward passes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from metalearn.inner.kernels.batch_norm import choose_accumulator
from metalearn.inner.kernels.conv import (
    Geometry,
    compute_output_size,
    find_autocast_kind,
    has_short_patches,
    on_cpu,
)
from metalearn.inner.kernels.patch_moments import Moments
from metalearn.inner.kernels.pooled_block import PooledBlock, PooledProduct
from metalearn.inner.kernels.pooled_product import Columns, Images
from metalearn.inner.kernels.views import Describe, View

__all__ = ["first_block", "is_first_block"]

LONGEST_PATCH = 64
"""Values: the covariance of longer ones costs more than it saves."""


def first_block(
    x: Tensor, filters: Tensor, geometry: Geometry, weight: Tensor | None, bias: Tensor | None, eps: float, relu: bool
) -> Tensor:
    """``max_pool2d(batch_norm(conv2d(x, filters)), 2)``, rectified if asked, with the statistics of the convolution itself.

    Args:
        x: ``[n, C, H, W]``, the examples of one task; under ``torch.func.vmap``, of each task.
        filters: ``[D, C, h, w]``; see :func:`is_first_block`.
        geometry: of the convolution, in one group.
        weight: ``[D]``, or ``None`` for 1.
        bias: ``[D]``, or ``None`` for 0.
        eps: added to the variance.
        relu: whether rectification follows.
    """
    kind = find_autocast_kind(x) or x.dtype
    size = compute_output_size(x, filters, geometry)
    images = _sees_images(x, filters, geometry)
    with torch.autocast(x.device.type, enabled=False):
        seen, *moments = Describe.apply(x, View(geometry, (filters.shape[2], filters.shape[3]), images))
        signed = filters
        if weight is not None:  # maxima after a negative scale are minima before
            sign = torch.where(weight.detach() < 0, -1.0, 1.0).to(filters.dtype)
            signed, weight = filters * sign.view(-1, 1, 1, 1), weight * sign
        mean, variance = Moments(*moments).project(signed.flatten(1))
        centre = mean.detach()[None] if images else None
        product = Images(geometry._replace(padding=(0, 0)), size) if images else Columns(size)
        seen, own = seen.to(kind)[None], (signed if images else signed.flatten(1)).to(kind)[None]
        z, index, squares = PooledProduct.apply(seen, own, centre, product)
        if centre is not None:
            variance = variance + (squares[0] / (len(x) * size[0] * size[1]) - variance).detach()
            mean = mean - centre[0]
        scale = torch.rsqrt(variance + eps)
        if weight is not None:
            scale = scale * weight
        shift = -mean * scale if bias is None else bias - mean * scale
        wide = choose_accumulator(z)
        y: Tensor = PooledBlock.apply(seen, own, scale.to(wide)[None], shift.to(wide)[None], z, index, relu, product)
        return y.squeeze(0)


def is_first_block(x: Tensor, filters: Tensor, geometry: Geometry) -> bool:
    """Whether :func:`first_block` is the faster way for images ``x`` ``[n, C, H, W]`` and these filters."""
    if has_short_patches(filters, geometry):
        return True
    return _sees_images(x, filters, geometry) and filters[0].numel() <= LONGEST_PATCH


def _sees_images(x: Tensor, filters: Tensor, geometry: Geometry) -> bool:
    """Whether the convolution's own kernel makes the product: it beats a product with longer patches in columns."""
    plain = geometry.stride == geometry.dilation == (1, 1) and geometry.groups == 1
    return plain and on_cpu(x) and not has_short_patches(filters, geometry)
