"""Mean and covariance of the patches that a convolution sees."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Moments", "choose_widest", "column_moments", "image_moments"]


class Moments(NamedTuple):
    """Over all places of all images of a task, in float64.

    Attributes:
        mean: ``[P]``.
        covariance: ``[P, P]``.
    """

    mean: Tensor
    covariance: Tensor

    def project(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance ``[D]`` of the products of the patches with filters ``[D, P]``, in float64.

        Where less is left of the variance than the rounding of its terms, it is raised to that, so that it is never negative.
        """
        kind = self.mean.dtype
        flat = flat.to(kind)
        variance = ((flat @ self.covariance) * flat).sum(1)
        lost = torch.finfo(kind).eps * (flat * flat) @ self.covariance.diagonal()
        return flat @ self.mean, variance + (lost - variance).clamp_min(0).detach()


def column_moments(columns: Tensor, parts: list[slice]) -> Moments:
    """Of patches ``[n, P, L]`` in columns, a range of images after another, summed in float64.

    An edge filter answers a smooth image by a small part of the image's own spread, and its variance is the square of that part:
    in float32 nothing would be left of it.
    """
    kind = choose_widest(columns)
    totals, products = [], []
    for part in parts:
        patches = columns[part].to(kind)
        totals.append(patches.sum((0, 2)))
        products.append(torch.bmm(patches, patches.transpose(1, 2)).sum(0))
    return _find_moments(torch.stack(totals).sum(0), torch.stack(products).sum(0), columns.shape[0] * columns.shape[2])


def image_moments(x: Tensor, kernel: tuple[int, int], parts: list[slice]) -> Moments:
    """Of the patches of images ``[n, C, H, W]``, padded already, that a kernel of stride 1 sees, a range of images after another.

    Its sums are those of the images' own dtype: they do for derivatives, but not for the variance of an edge filter itself.

    Patches are not cut out. The product of two values of a patch, summed over its places, is one of two rows of the image,
    shifted against each other. With the kernel one row further down the sum has one row less above, and one more below. So only
    the products of a patch's first row with all of its rows are taken over the whole image.
    """
    high, wide = kernel
    channels, patch = x.shape[1], x.shape[1] * high * wide
    rows, width = x.shape[2] - high + 1, x.shape[3] - wide + 1
    level = x.detach().mean((0, 2, 3))  # no shift changes a covariance
    widest = choose_widest(x)
    totals, blocks = [], []
    for part in parts:
        shifted = (x[part] - level[:, None, None]).unfold(3, width, 1).transpose(2, 3)  # [n, C, w, H, W']
        lines = shifted.flatten(1, 2).flatten(2)  # [n, C w, H W']
        totals.append(lines.unflatten(2, (-1, width)).sum(3).sum(0, dtype=widest))
        blocks.append(torch.stack(_multiply_rows(lines, rows, width, high)))
    total = torch.stack(totals).sum(0).unfold(1, rows, 1).sum(2)  # [C w, h]
    total = total.unflatten(0, (channels, wide)).transpose(1, 2).flatten()
    products = torch.stack(blocks).sum(0).view(high, high, channels, wide, channels, wide)
    products = products.permute(2, 0, 3, 4, 1, 5).reshape(patch, patch)
    moments = _find_moments(total, products, x.shape[0] * rows * width)
    return moments._replace(mean=moments.mean + level.to(widest)[:, None].expand(-1, high * wide).flatten())


def _multiply_rows(lines: Tensor, rows: int, width: int, high: int) -> list[Tensor]:
    """For each two rows of a patch the products ``[K, K]`` of their values, from lines ``[n, K, H W]``, in float64."""
    widest = choose_widest(lines)

    def multiply(first: int, second: int, count: int) -> Tensor:
        left, right = (lines[..., line * width : (line + count) * width] for line in (first, second))
        return torch.bmm(left, right.transpose(1, 2)).sum(0, dtype=widest)

    products: dict[tuple[int, int], Tensor] = {}
    for apart in range(high):
        product = multiply(0, apart, rows)
        for first in range(high - apart):
            if first:
                below = multiply(first - 1 + rows, first - 1 + rows + apart, 1)
                product = product + (below - multiply(first - 1, first - 1 + apart, 1))
            products[first, first + apart] = product
            products[first + apart, first] = product.t()
    return [products[first, second] for first in range(high) for second in range(high)]


def _find_moments(total: Tensor, products: Tensor, count: int) -> Moments:
    mean = total / count
    return Moments(mean, products / count - mean[:, None] * mean)


def choose_widest(x: Tensor) -> torch.dtype:
    """float64, where the device has it."""
    return torch.float32 if x.device.type == "mps" else torch.float64
