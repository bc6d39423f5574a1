"""One convolution: its geometry, its size, and its gradients by torch's own operators."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "Geometry",
    "as_channels_last",
    "compute_output_size",
    "convolve_plainly",
    "differentiate_plainly",
    "on_cpu",
    "order",
]


class Geometry(NamedTuple):
    """Stride, padding, dilation (height, width) and groups of a convolution."""

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1


def on_cpu(x: Tensor) -> bool:
    """Whether the CPU's ways apply: channels-last order, and tasks that take turns."""
    return x.device.type == "cpu"


def compute_output_size(x: Tensor, weight: Tensor, geometry: Geometry) -> tuple[int, int]:
    """``H', W'`` of images ``[..., H, W]`` and weights ``[..., h, w]``."""
    stride, padding, dilation, _ = geometry
    height, width = (
        (x.shape[side] + 2 * padding[side] - dilation[side] * (weight.shape[side] - 1) - 1) // stride[side] + 1
        for side in (-2, -1)
    )
    return height, width


def as_channels_last(x: Tensor) -> Tensor:
    """The same values ``[..., C, H, W]`` in memory order ``..., H, W, C``."""
    return x.movedim(-3, -1).contiguous().movedim(-1, -3)


def convolve_plainly(x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """The convolution of ``x`` ``[n, C, H, W]`` with ``weight`` ``[D, C / groups, h, w]``."""
    return torch.conv2d(order(x), order(weight), None, *geometry)


def differentiate_plainly(
    grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, of_x: bool, of_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of ``x`` and of the weight, from that of the output ``[n, D, H', W']``."""
    stride, padding, dilation, groups = geometry
    if weight.shape[-2:] == (1, 1) and stride != (1, 1) and padding == (0, 0):
        return _differentiate_points(grad, x, weight, geometry, of_x, of_weight)
    gx, gw, _ = torch.ops.aten.convolution_backward(
        order(grad), order(x), order(weight), None, stride, padding, dilation, False, [0, 0], groups,
        [of_x, of_weight, False],
    )  # fmt: skip
    return gx, gw


def _differentiate_points(
    grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, of_x: bool, of_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """The same of a 1x1 convolution with a stride, which sees some of the points alone.

    torch 2.14's own writes beyond its memory on some CPUs (float32, channels-last order, two threads).
    """
    down, across = geometry.stride
    seen = x[..., ::down, ::across]
    gx, gw = differentiate_plainly(grad, seen, weight, geometry._replace(stride=(1, 1)), of_x, of_weight)
    if gx is not None:
        points, gx = gx, torch.zeros_like(x)
        gx[..., ::down, ::across] = points
    return gx, gw


def order(x: Tensor) -> Tensor:
    """``[n, C, H, W]`` in the memory order that kernels are fast in: channels last on a CPU, as it is elsewhere."""
    if not on_cpu(x):
        return x
    x = x.contiguous(memory_format=torch.channels_last)
    if len(x) == 1 and x.stride(0) != x[0].numel():  # a lone image's stride may be anything, and kernels judge by it
        x = x.as_strided(x.shape, (x[0].numel(), *x.stride()[1:]))
    return x
