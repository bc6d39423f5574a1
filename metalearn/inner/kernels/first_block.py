"""The first block of a network: convolution of images with few channels, batch normalisation, 2x2 max-pooling, rectification.

Its output before pooling is the largest tensor of a small network, and most of its time. It is a product ``W c`` of the filters
with the image patches ``c`` (of ``C h w`` values), so that its mean and variance follow from those of the patches::

    mean = W mean(c)    variance = diag(W cov(c) W')

both in float64, and a scale per channel commutes with max-pooling up to its sign. So the product is made, pooled and forgotten:
it is never normalised, never passed over for statistics, and not kept for the backward passes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.inner.kernels.batch_norm import choose_accumulator
from metalearn.inner.kernels.conv import (
    Geometry,
    compute_output_size,
    find_autocast_kind,
    has_short_patches,
    on_cpu,
    unfold,
)
from metalearn.inner.kernels.patch_moments import choose_widest, column_moments, image_moments
from metalearn.inner.kernels.pooled_block import PooledBlock, PooledProduct
from metalearn.inner.kernels.pooled_product import Columns, Images, cut

__all__ = ["first_block", "is_first_block"]

FLAT = 4.0
"""Of images, from this quotient of mean and standard deviation on."""
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
    with torch.autocast(x.device.type, enabled=False):
        seen, geometry = _darken(x, geometry.padding), geometry._replace(padding=(0, 0))
        signed = filters
        if weight is not None:  # maxima after a negative scale are minima before
            sign = torch.where(weight.detach() < 0, -1.0, 1.0).to(filters.dtype)
            signed, weight = filters * sign.view(-1, 1, 1, 1), weight * sign
        flat = signed.flatten(1)
        product: Columns | Images
        centre = None
        if _sees_images(x, filters, geometry):
            moments = image_moments(
                seen, (filters.shape[2], filters.shape[3]), cut(len(x), seen[0].numel() * filters.shape[3], on_cpu(x))
            )
            mean, variance = moments.project(flat)
            centre, own, product = mean.detach()[None], signed, Images(geometry, size)
        else:
            seen = unfold(seen, filters, geometry)
            mean, variance = column_moments(seen, cut(len(x), seen[0].numel(), on_cpu(x))).project(flat)
            own, product = flat, Columns(size)
        seen, own = seen.to(kind)[None], own.to(kind)[None]
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


def _darken(x: Tensor, padding: tuple[int, int]) -> Tensor:
    """``x``, padded, less the mean of each channel where that is above ``FLAT`` times the deviation.

    Products are then rounded by the images' contrast in the place of their brightness.

    A shift of all that a filter sees shifts its output, which normalisation takes away: to every derivative it is a constant.
    Nearly all pixels are then between half and twice the mean, so that their differences to it are exact. Otherwise nothing is
    subtracted: what lies near zero has digits to lose.
    """
    high, wide = padding
    x = F.pad(x.to(choose_accumulator(x)), (wide, wide, high, high))
    inside = x.detach()[:, :, high : x.shape[2] - high, wide : x.shape[3] - wide]
    mean = inside.mean((0, 2, 3), keepdim=True, dtype=choose_widest(x)).to(x.dtype)  # of a constant image, itself
    variance = (inside - mean).square().mean((0, 2, 3), keepdim=True)
    return x - torch.where(mean * mean > FLAT**2 * variance, mean, 0.0)[0]
