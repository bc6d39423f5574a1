"""Ways to compute the convolutions of many tasks, each with weights of its own, and both their gradients.

All give the same numbers up to rounding. Which is fastest depends on shapes, type and device, and is measured
(``conv_choice.py``).

Shapes: ``x`` ``[B, n, C, H, W]``; ``weight`` ``[B, D, C / groups, h, w]``; ``grad``, the gradient of the output,
``[B, n, D, H', W']``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.inner.kernels.plain_conv import (
    Geometry,
    compute_output_size,
    convolve_plainly,
    differentiate_plainly,
)

__all__ = ["PATHS", "Path", "stack_tasks"]


class Path(ABC):
    """A way; nothing it gives shares memory with what it takes."""

    @abstractmethod
    def convolve(self, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
        """``[B, n, D, H', W']``."""

    @abstractmethod
    def differentiate_x(self, grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
        """The gradient of ``x``, whose values are not read."""

    @abstractmethod
    def differentiate_weight(self, grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
        """The gradient of the weight, whose values are not read."""


class Turns(Path):
    """Tasks take turns: a convolution a task."""

    def convolve(self, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
        return stack_tasks([convolve_plainly(*task, geometry) for task in zip(x, weight, strict=True)])

    def differentiate_x(self, grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
        tasks = zip(grad, x, weight, strict=True)
        return stack_tasks([differentiate_plainly(*task, geometry, True, False)[0] for task in tasks])

    def differentiate_weight(self, grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
        tasks = zip(grad, x, weight, strict=True)
        return stack_tasks([differentiate_plainly(*task, geometry, False, True)[1] for task in tasks])


class Grouped(Path):
    """Tasks are groups of one convolution, whose channels are those of all tasks."""

    def convolve(self, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
        tasks = len(x)
        y = convolve_plainly(_as_channels(x), weight.flatten(0, 1), _group(geometry, tasks))
        return y.unflatten(1, (tasks, -1)).transpose(0, 1)

    def differentiate_x(self, grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
        gx, _ = self._differentiate(grad, x, weight, geometry, True, False)
        return gx.unflatten(1, (len(x), -1)).transpose(0, 1)

    def differentiate_weight(self, grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
        _, gw = self._differentiate(grad, x, weight, geometry, False, True)
        return gw.unflatten(0, (len(x), -1))

    def _differentiate(self, grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, *wanted: bool) -> Any:
        grouped = _group(geometry, len(x))
        return differentiate_plainly(_as_channels(grad), _as_channels(x), weight.flatten(0, 1), grouped, *wanted)


class Patches(Path):
    """Batched matrix products with the patches that the filters see, in channels-last order: two kernels a product.

    The patches hold ``h w`` times the values of the images, for as long as the product takes.
    """

    def convolve(self, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
        tasks, count = x.shape[:2]
        height, width = compute_output_size(x, weight, geometry)
        patches = _cut_patches(x, weight, geometry)
        filters = _as_filters(weight, geometry.groups)
        rows = torch.bmm(patches, filters.transpose(1, 2))
        y = rows.view(tasks, geometry.groups, count, height, width, -1)
        return y.permute(0, 2, 1, 5, 3, 4).flatten(2, 3)

    def differentiate_x(self, grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
        """As the convolution of the gradient, spread by the stride, with the filters turned round."""
        stride, padding, dilation, groups = geometry
        size = [side * (kernel - 1) for side, kernel in zip(dilation, weight.shape[-2:], strict=True)]
        if stride != (1, 1):
            full = [x.shape[-2 + i] + 2 * padding[i] - size[i] for i in (0, 1)]
            spread = grad.new_zeros(*grad.shape[:3], *full)
            spread[..., :: stride[0], :: stride[1]] = grad
            grad = spread
        turned = weight.unflatten(1, (groups, -1)).transpose(2, 3).flatten(1, 2).flip(-2, -1)
        inside = (size[0] - padding[0], size[1] - padding[1])
        return self.convolve(grad, turned, Geometry((1, 1), inside, dilation, groups))

    def differentiate_weight(self, grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
        tasks, groups = len(x), geometry.groups
        patches = _cut_patches(x, weight, geometry)
        rows = grad.unflatten(2, (groups, -1)).permute(0, 2, 1, 4, 5, 3).reshape(tasks * groups, patches.shape[1], -1)
        filters = torch.bmm(rows.transpose(1, 2), patches)
        shape = (tasks, groups * rows.shape[2], *weight.shape[-2:], weight.shape[2])
        return filters.view(shape).permute(0, 1, 4, 2, 3)


PATHS: dict[str, Path] = {"grouped": Grouped(), "patches": Patches(), "turns": Turns()}
"""By their names; the first is taken where nothing is measured."""


def stack_tasks(parts: Any) -> Tensor:
    """Stack images or filters over tasks, in channels-last order."""
    return torch.stack([part.permute(0, 2, 3, 1) for part in parts]).permute(0, 1, 4, 2, 3)


def _group(geometry: Geometry, tasks: int) -> Geometry:
    return geometry._replace(groups=tasks * geometry.groups)


def _as_channels(x: Tensor) -> Tensor:
    """``[B, n, C, H, W]`` as ``[n, B C, H, W]``."""
    return x.transpose(0, 1).flatten(1, 2)


def _as_filters(weight: Tensor, groups: int) -> Tensor:
    """``[B, D, C / groups, h, w]`` as ``[B groups, D / groups, h w C / groups]``, the order of the patches."""
    return weight.permute(0, 1, 3, 4, 2).reshape(len(weight) * groups, weight.shape[1] // groups, -1)


def _cut_patches(x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """``[B groups, n H' W', h w C / groups]``; a padding below 0 cuts off."""
    stride, (high, wide), dilation, groups = geometry
    tasks, count, channels = x.shape[:3]
    size = compute_output_size(x, weight, geometry)
    images = x.movedim(2, -1)
    images = F.pad(images, (0, 0, wide, wide, high, high)) if (high, wide) != (0, 0) else images.contiguous()
    of_task, of_image, of_row, of_column, of_channel = images.stride()
    windows = images.as_strided(
        (tasks, groups, count, *size, *weight.shape[-2:], channels // groups),
        (
            of_task, of_channel * (channels // groups), of_image, of_row * stride[0], of_column * stride[1],
            of_row * dilation[0], of_column * dilation[1], of_channel,
        ),
        images.storage_offset(),
    )  # fmt: skip
    return windows.reshape(tasks * groups, count * size[0] * size[1], -1)
