"""Convolutions of many tasks, each with weights of its own, and their derivatives up to the second.

torch's double backward of a convolution takes the weight's part from a convolution whose kernel is as large as the image. That
runs far below the speed of the first derivatives. The same products are weight and input gradients of ordinary convolutions,
and those have fast kernels. On a CPU everything is kept in channels-last order, where normalisation and pooling are several
times faster than in the default order, and tasks take turns. Elsewhere one of several ways is taken (``paths.py``).

Shapes: ``x`` ``[B, n, C, H, W]``; ``weight`` ``[B, D, C / groups, h, w]``, or ``[1, ...]`` where all tasks share it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from metalearn.inner.kernels.conv_choice import CHOICE
from metalearn.inner.kernels.paths import Path, stack_tasks
from metalearn.inner.kernels.plain_conv import (
    Geometry,
    as_channels_last,
    compute_output_size,
    convolve_plainly,
    differentiate_plainly,
    on_cpu,
)

__all__ = [
    "Geometry",
    "as_channels_last",
    "compute_output_size",
    "conv2d",
    "convolution_gradients",
    "convolve",
    "find_autocast_kind",
    "has_short_patches",
    "merge",
    "on_cpu",
    "unfold",
]


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """The convolution of ``x`` ``[n, C, H, W]`` with ``weight`` ``[D, C / groups, h, w]``: ``[n, D, H', W']``.

    Under ``torch.func.vmap`` all tasks are computed together. Under autocast it is computed in the autocast dtype, also there.
    """
    kind = find_autocast_kind(x)
    if kind is not None:
        x, weight = x.to(kind), weight.to(kind)
        bias = None if bias is None else bias.to(kind)
    with torch.autocast(x.device.type, enabled=False):
        if on_cpu(x) and has_short_patches(weight, geometry):
            y = _unfolded(x, weight, geometry)
        else:
            y = _Conv.apply(x[None], weight[None], geometry).squeeze(0)
        return y if bias is None else y + bias.view(1, -1, 1, 1)


def find_autocast_kind(x: Tensor) -> torch.dtype | None:
    """What autocast would compute ``x`` in, if it is on."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def has_short_patches(weight: Tensor, geometry: Geometry) -> bool:
    """Whether the patches are so short, as with grey images, that a product with them beats the convolution kernels."""
    return geometry.groups == 1 and 4 * weight[0].numel() <= len(weight)


def merge(tensor: Tensor, axis: int | None, tasks: int) -> Tensor:
    """Join the axis of vmap to the task axis in front; what has no such axis keeps its own, of length 1."""
    if axis is None:
        return tensor
    moved = tensor.movedim(axis, 0)
    return moved.expand(tasks, *moved.shape[1:]).flatten(0, 1)


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
        # not a view of what was computed, so that the network may write to it in place
        return convolve(x, weight, geometry).data

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, ctx.geometry = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, weight = ctx.saved_tensors
        return *_ConvGradient.apply(grad, x, weight, ctx.geometry, *ctx.needs_input_grad[:2]), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], x: Tensor, weight: Tensor, geometry: Geometry) -> Any:
        tasks = info.batch_size
        x, weight = merge(x, in_dims[0], tasks), merge(weight, in_dims[1], tasks)
        return _Conv.apply(x.expand(tasks, *x.shape[1:]), weight, geometry).unsqueeze(1), 0


class _ConvGradient(torch.autograd.Function):
    """``(g, x, w) -> (g * w, g * x)``: bilinear in each pair, so its own derivatives are convolutions again."""

    @staticmethod
    def forward(
        ctx: Any, grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, of_x: bool, of_weight: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        ctx.save_for_backward(grad, x, weight)
        ctx.geometry = geometry
        ctx.set_materialize_grads(False)
        return convolution_gradients(grad, x, weight, geometry, of_x, of_weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, along_x: Tensor | None, along_weight: Tensor | None) -> tuple[Any, ...]:
        grad, x, weight = ctx.saved_tensors
        of_grad = of_x = of_weight = None
        if ctx.needs_input_grad[0]:
            if along_x is not None:
                of_grad = convolve(along_x, weight, ctx.geometry)
            if along_weight is not None:
                more = convolve(x, along_weight, ctx.geometry)
                of_grad = more if of_grad is None else of_grad.add_(more)
        wants_x = ctx.needs_input_grad[1] and along_weight is not None
        wants_weight = ctx.needs_input_grad[2] and along_x is not None
        if wants_x or wants_weight:
            along_x = x if along_x is None else along_x
            along_weight = weight if along_weight is None else along_weight
            of_x, of_weight = convolution_gradients(grad, along_x, along_weight, ctx.geometry, wants_x, wants_weight)
        return of_grad, of_x, of_weight, None, None, None


def unfold(x: Tensor, kernel: tuple[int, int], geometry: Geometry) -> Tensor:
    """The patches of ``x`` ``[n, C, H, W]`` that a kernel is applied to: ``[n, C h w, H' W']``."""
    stride, padding, dilation, _ = geometry
    return F.unfold(x, kernel, dilation, padding, stride)


def _unfolded(x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """A convolution as a product with the patches, whose derivatives are products again."""
    columns = unfold(x, (weight.shape[2], weight.shape[3]), geometry)
    flat = weight.flatten(1).t()
    rows = torch.bmm(columns.transpose(1, 2), flat.expand(len(x), *flat.shape))
    return rows.unflatten(1, compute_output_size(x, weight, geometry)).permute(0, 3, 1, 2)


def convolve(x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """The convolutions of ``x`` ``[B, n, C, H, W]`` with ``weight`` ``[B, D, C / groups, h, w]``, without a graph."""
    if len(weight) == 1:
        return convolve_plainly(x.flatten(0, 1), weight[0], geometry).unflatten(0, x.shape[:2])
    if _take_turns(x):
        x, weight = as_channels_last(x), as_channels_last(weight)
        return stack_tasks([torch.conv2d(task, own, None, *geometry) for task, own in zip(x, weight, strict=True)])

    def convolve_tasks(path: Path) -> Tensor:
        return path.convolve(x, weight, geometry)

    return CHOICE.run("output", convolve_tasks, x, weight, geometry)


def convolution_gradients(
    grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, of_x: bool, of_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of ``x`` and ``weight``, from that of :func:`convolve`."""
    if len(weight) == 1:
        gx, gw = differentiate_plainly(grad.flatten(0, 1), x.flatten(0, 1), weight[0], geometry, of_x, of_weight)
        return None if gx is None else gx.unflatten(0, x.shape[:2]), None if gw is None else gw[None]
    if _take_turns(x):
        grad, x, weight = as_channels_last(grad), as_channels_last(x), as_channels_last(weight)
        pairs = [differentiate_plainly(*task, geometry, of_x, of_weight) for task in zip(grad, x, weight, strict=True)]
        gxs, gws = zip(*pairs, strict=True)
        return stack_tasks(gxs) if of_x else None, stack_tasks(gws) if of_weight else None

    def differentiate_x(path: Path) -> Tensor:
        return path.differentiate_x(grad, x, weight, geometry)

    def differentiate_weight(path: Path) -> Tensor:
        return path.differentiate_weight(grad, x, weight, geometry)

    return (
        CHOICE.run("input gradient", differentiate_x, x, weight, geometry) if of_x else None,
        CHOICE.run("weight gradient", differentiate_weight, x, weight, geometry) if of_weight else None,
    )


def _take_turns(x: Tensor) -> bool:
    """Whether tasks take turns, both gradients of a task in one call."""
    return on_cpu(x) and CHOICE.forced is None
