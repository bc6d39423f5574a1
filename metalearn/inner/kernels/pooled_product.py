"""The product of filters with image patches, and the pieces in which it is made, pooled and forgotten."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from metalearn.inner.kernels.batch_norm import as_rows, unpool
from metalearn.inner.kernels.conv import convolution_gradients
from metalearn.inner.kernels.plain_conv import Geometry, order

__all__ = ["Columns", "Images", "allocate_pooled", "cut", "cut_tasks", "of_tasks", "unpool_product"]

AT_ONCE = 1 << 19
"""Values of the product that are made at once on a CPU: 2 MB in float32."""


class Columns(NamedTuple):
    """Patches in columns ``[B, n, P, L]``, filters ``[B, D, P]``: best where patches are short.

    Attributes:
        size: height and width of the product, ``L`` together.
    """

    size: tuple[int, int]

    def multiply(self, columns: Tensor, filters: Tensor, centre: Tensor | None = None) -> Tensor:
        """``[B, n, D, H, W]``, less the centre ``[B, D]``, channels last."""
        tasks, count = columns.shape[:2]
        across = filters.transpose(1, 2)[:, None].expand(tasks, count, *filters.shape[:0:-1]).flatten(0, 1)
        rows = torch.bmm(columns.flatten(0, 1).transpose(1, 2), across)
        if centre is not None:
            rows.view(tasks, -1, filters.shape[1]).sub_(centre[:, None])
        return rows.view(tasks, count, *self.size, filters.shape[1]).permute(0, 1, 4, 2, 3)

    def differentiate(
        self, grad: Tensor, columns: Tensor, filters: Tensor, of_columns: bool, of_filters: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """The gradients of the columns and of the filters, from that of the product."""
        rows = as_rows(grad).view(*grad.shape[:2], -1, grad.shape[2])  # [B, n, L, D]
        along_columns = torch.matmul(rows, filters[:, None]).transpose(-1, -2) if of_columns else None
        if not of_filters:
            return along_columns, None
        of_images = torch.bmm(columns.flatten(0, 1), rows.flatten(0, 1)).unflatten(0, columns.shape[:2])
        total = of_images.sum((0, 1) if len(filters) == 1 else (1,))
        return along_columns, total.transpose(-1, -2).reshape(filters.shape)


class Images(NamedTuple):
    """Images ``[1, n, C, H, W]`` of a task, filters ``[1, D, C, h, w]``.

    Attributes:
        geometry: of the convolution.
        size: height and width of the product.
    """

    geometry: Geometry
    size: tuple[int, int]

    def multiply(self, images: Tensor, filters: Tensor, centre: Tensor | None = None) -> Tensor:
        """``[1, n, D, H', W']``, less the centre ``[1, D]``, channels last."""
        shift = None if centre is None else -centre[0].to(images.dtype)
        return torch.conv2d(order(images[0]), order(filters[0]), shift, *self.geometry)[None]

    def differentiate(
        self, grad: Tensor, images: Tensor, filters: Tensor, of_images: bool, of_filters: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """The gradients of the images and of the filters, from that of the product."""
        return convolution_gradients(grad, images, filters, self.geometry, of_images, of_filters)


def cut(images: int, values: int, on_cpu: bool) -> list[slice]:
    """Ranges of images, for each of which ``values`` values an image are made and forgotten, while they are in the caches."""
    step = max(1, AT_ONCE // values) if on_cpu else images
    return [slice(first, first + step) for first in range(0, images, step)]


def cut_tasks(seen: Tensor, filters: Tensor, product: Columns | Images) -> list[tuple[slice, slice]]:
    """Tasks and images that are taken at once: of all tasks, or of one where they take turns anyway."""
    tasks, images = seen.shape[:2]
    values, on_cpu = filters.shape[1] * product.size[0] * product.size[1], seen.device.type == "cpu"
    at_once = 1 if on_cpu and isinstance(product, Images) else tasks
    parts = cut(images, at_once * values, on_cpu)
    return [(slice(task, task + at_once), part) for task in range(0, tasks, at_once) for part in parts]


def of_tasks(filters: Tensor, tasks: slice) -> Tensor:
    """The filters of these tasks, which may share one set of them."""
    return filters if len(filters) == 1 else filters[tasks]


def allocate_pooled(like: Tensor, tasks: int, images: int, width: int, size: tuple[int, int]) -> Tensor:
    """``[B, n, D, H / 2, W / 2]``, channels last, not filled yet."""
    return like.new_empty(tasks, images, size[0] // 2, size[1] // 2, width).permute(0, 1, 4, 2, 3)


def unpool_product(values: Tensor, index: Tensor, size: tuple[int, int]) -> Tensor:
    """``[B, n, D, H, W]``: pooled values back at their places, among zeros."""
    tasks, count, width = values.shape[:3]
    like = values.new_empty(tasks, count, *size, width).permute(
        0, 1, 4, 2, 3
    )  # tells the shape and order, is never read
    return unpool(values, index, like)
