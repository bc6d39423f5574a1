"""Batch normalisation of many tasks, each by its own statistics, fused with the pooling and rectification that follow it.

A scale per channel commutes with max-pooling up to its sign, so that the affine map and the rectification work on a quarter
of the values. First and second derivatives are written out; each full-size tensor is passed over as few times as the formulas
allow. Under ``torch.func.vmap`` torch's own layer has silently wrong second derivatives; this has not.

For each task and channel, with ``m`` values, ``c = x - mean(x)``, ``r = (mean(c^2) + eps)^(-1/2)``, ``z`` the pooled ``c`` and
``s = weight * r``, the output is ``relu(s z + bias)``. With ``g`` the gradient where the output is positive, ``G`` its image
under un-pooling, ``s0 = sum g`` and ``s1 = sum g z``, the gradients are::

    x: s (G - s0 / m - r^2 s1 c / m)    weight: r s1    bias: s0

In the code ``z`` is the pooled ``x``, which is kept anyway, so that ``z - mean`` stands for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from metalearn.inner.ambient import current
from metalearn.inner.kernels.conv import merge
from metalearn.inner.kernels.plain_conv import as_channels_last, on_cpu, order

__all__ = ["as_images", "as_rows", "choose_accumulator", "choose_places", "normalise", "pick", "pool", "unpool"]


def normalise(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, pool: bool = False, relu: bool = False
) -> Tensor:
    """``relu(max_pool2d(batch_norm(x), 2))`` with the statistics of ``x`` itself, summed in float32 where ``x`` is shorter.

    Args:
        x: ``[n, C, H, W]``, the examples of one task; under ``torch.func.vmap``, of each task.
        weight: ``[C]``, or ``None`` for 1.
        bias: ``[C]``, or ``None`` for 0.
        eps: added to the variance.
        pool: whether 2x2 max-pooling follows.
        relu: whether rectification follows.
    """
    with torch.autocast(x.device.type, enabled=False):
        kind = choose_accumulator(x)
        weight = torch.ones(x.shape[1], device=x.device, dtype=kind) if weight is None else weight.to(kind)
        bias = torch.zeros(x.shape[1], device=x.device, dtype=kind) if bias is None else bias.to(kind)
        y: Tensor = _Normalise.apply(_centre(x)[None], weight[None], bias[None], eps, pool, relu)[0]
        return y.squeeze(0)  # indexing would cost a copy in the backward pass


def _centre(x: Tensor) -> Tensor:
    """``x`` less a mean of some of its values, a constant to every derivative that normalisation takes away.

    What is left of the mean is at most four deviations: the mean of a sixteenth of the values is not further from that of all. So
    moments and sums are rounded by the spread of ``x`` in the place of its offset.
    """
    # an image at a time, which is several times faster than all three axes at once
    by_image = x.detach()[::16].mean((2, 3), keepdim=True, dtype=choose_accumulator(x))
    return x - by_image.mean(0).to(x.dtype)


def choose_accumulator(x: Tensor) -> torch.dtype:
    """What sums over ``x`` are kept in: 8 bits of mantissa do not carry a mean over many values."""
    return torch.float32 if x.dtype in (torch.bfloat16, torch.float16) else x.dtype


def as_rows(x: Tensor) -> Tensor:
    """``[B, n, C, H, W]`` as ``[B, n H W, C]``."""
    return as_channels_last(x).permute(0, 1, 3, 4, 2).flatten(1, 3)


def as_images(rows: Tensor, like: Tensor) -> Tensor:
    """``[B, n H W, C]`` as ``[B, n, C, H, W]``, the axes of ``like``."""
    tasks, n, _, height, width = like.shape
    return rows.view(tasks, n, height, width, -1).permute(0, 1, 4, 2, 3)


def _sum(rows: Tensor) -> Tensor:
    return rows.sum(1, keepdim=True, dtype=choose_accumulator(rows))


def _scale_and_shift(rows: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """``scale * rows + shift`` with ``[B, 1, C]`` factors."""
    return torch.addcmul(shift.to(rows.dtype), rows, scale.to(rows.dtype))


def _finish(rows: Tensor, scale: Tensor, shift: Tensor, relu: bool) -> Tensor:
    """``scale * rows + shift``, rectified if asked: from unrounded factors, so that each sign is right."""
    if not relu:
        return _scale_and_shift(rows, scale, shift)
    return torch.addcmul(shift, rows.to(shift.dtype), scale).relu_().to(rows.dtype)


def pool(x: Tensor) -> tuple[Tensor, Tensor]:
    """2x2 maxima of ``[B, n, C, H, W]`` and their places, as :func:`choose_places` says."""
    y, index = F.max_pool2d(order(x.flatten(0, 1)), 2, return_indices=True)
    return y.unflatten(0, x.shape[:2]), index.to(choose_places(x.shape[-2:])).unflatten(0, x.shape[:2])


def choose_places(size: Sequence[int]) -> torch.dtype:
    """The shortest integers that hold a place of an image: a step keeps them, and torch's are up to four times as long."""
    return torch.int16 if size[0] * size[1] <= torch.iinfo(torch.int16).max else torch.int32


def pick(x: Tensor, index: Tensor) -> Tensor:
    """The values of ``[B, n, C, H, W]`` at the places that pooling chose, ``[B, n, C, H', W']``."""
    if not on_cpu(x):
        return x.flatten(3).gather(3, index.flatten(3).long()).view(index.shape)
    values, places = (as_channels_last(part).movedim(2, -1) for part in (x, index))  # [B, n, H, W, C]
    size, channels = values[0, 0].numel(), values.shape[-1]
    first = torch.arange(0, size * len(values) * values.shape[1], size).view(*values.shape[:2], 1, 1, 1)
    places = torch.add(first + torch.arange(channels), places, alpha=channels)  # counted from the first value of all
    return values.flatten().index_select(0, places.flatten()).view(places.shape).movedim(-1, 2)


def unpool(values: Tensor, index: Tensor, like: Tensor) -> Tensor:
    """Put pooled values back at the places they came from, among zeros."""
    full = torch.ops.aten.max_pool2d_with_indices_backward(
        order(values.flatten(0, 1)), order(like.flatten(0, 1)), [2, 2], [2, 2], [0, 0], [1, 1], False,
        order(index.flatten(0, 1)).long(),
    )  # fmt: skip
    return full.unflatten(0, like.shape[:2])


class _Normalise(torch.autograd.Function):
    """Its outputs beyond the first are what the backward pass needs: mean, ``r``, and pooled values with their places."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float, pools: bool, relu: bool) -> tuple[Tensor, ...]:
        x = as_channels_last(x)
        rows = as_rows(x)
        count = rows.shape[1]
        mean = _sum(rows) / count
        r = torch.rsqrt((_sum(rows * rows) / count - mean * mean).clamp_min(0) + eps)  # the mean is small
        scale = weight[:, None] * r
        shift = bias[:, None] - scale * mean
        if not pools:
            y = _finish(rows, scale, shift, relu)
            return (
                as_images(y, x).data,
                mean,
                r,
            )  # no view, so that it may be written to in place
        if on_cpu(x) and current().asks and bool((scale > 0).all()):  # a device would be waited for
            z, index = pool(x)
        else:
            _, index = pool(as_images(rows * scale.sign().to(rows.dtype), x))
            z = pick(x, index)
        y = _finish(as_rows(z), scale, shift, relu)
        return as_images(y, z).data, mean, r, z, index

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, weight, _, _, _, relu = inputs
        y, mean, r, *pooled = output
        ctx.mark_non_differentiable(mean, r, *pooled)
        z, index = pooled or (None, None)
        ctx.save_for_backward(x, weight, mean, r, z, index, y if relu else None)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
        if grad is None:
            return (None,) * 6
        return *_NormaliseGradient.apply(grad, *ctx.saved_tensors), None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
        tasks = info.batch_size
        x, weight, bias = (merge(args[i], in_dims[i], tasks) for i in range(3))
        if len(weight) != len(bias):  # where one of them adapts alone: their gradients are of one shape
            weight, bias = weight.expand(tasks, -1), bias.expand(tasks, -1)
        outputs = _Normalise.apply(x.expand(tasks, *x.shape[1:]), weight, bias, *args[3:])
        return tuple(output.unsqueeze(1) for output in outputs), (0,) * len(outputs)


class _NormaliseGradient(torch.autograd.Function):
    """The gradients of ``x``, weight and bias, as a function of the output's gradient, ``x`` and the weight.

    ``mean``, ``r``, ``z``, ``index`` and ``y`` are what the forward pass found for this ``x``; that they depend on it is part
    of the derivative with respect to ``x``.
    """

    @staticmethod
    def forward(
        ctx: Any, grad: Tensor, x: Tensor, weight: Tensor, mean: Tensor, r: Tensor, z: Tensor | None,
        index: Tensor | None, y: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        x, grad = as_channels_last(x), as_channels_last(grad)
        g = grad if y is None else torch.ops.aten.threshold_backward(grad, y, 0)
        rows, kind = as_rows(g), g.dtype
        s0 = _sum(rows)
        s1 = _sum(rows * (as_rows(x if z is None else z) - mean.to(kind)))
        m = x.shape[1] * x.shape[3] * x.shape[4]
        scale = weight[:, None] * r
        slope = -scale * r * r * s1 / m
        of_x = _scale_and_shift(as_rows(x), slope, -scale * s0 / m - slope * mean)
        of_x = _add_unpooled(of_x, rows, scale, index, g, x)
        ctx.save_for_backward(g, x, weight, mean, r, z, index, y, s0, s1)
        return as_images(of_x, x), _sum_shared((r * s1)[:, 0], weight), _sum_shared(s0[:, 0], weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v: Tensor, a: Tensor, b: Tensor) -> tuple[Any, ...]:
        """From cotangents ``v``, ``a``, ``b`` of the gradients of x, weight and bias to those of ``grad``, ``x`` and ``weight``.

        With ``at`` the values of ``v`` at the places that pooling chose, the cotangents make one scalar of the three gradients::

            L = s t + a r s1 + b s0    t = p - s0 v0 / m - q s1 v1    s = weight r    q = r^2 / m
            p = sum g at    v0 = sum v    v1 = sum v c

        It depends on ``g`` by way of ``p``, ``s0`` and ``s1``, and on ``c = x - mean`` by way of ``s1``, ``v1`` and ``r``. With
        ``dr / dc = -r^3 c / m`` and::

            k1 = dL / ds1 = a r - s q v1
            k2 = dL / dv1 = -s q s1
            k3 = -r^3 / m dL / dr    dL / dr = weight t + a s1 - 2 s r s1 v1 / m

        its gradients are, the first where the output is positive::

            grad: s at - s v0 / m + k1 (z - mean) + b
            x: k1 G + k2 v + k3 c - (k1 s0 + k2 v0) / m
            weight: r t
        """
        g, x, weight, mean, r, z, index, y, s0, s1 = ctx.saved_tensors
        kind = g.dtype
        m = x.shape[1] * x.shape[3] * x.shape[4]
        v = as_channels_last(v)
        rows, v_rows, a, b = as_rows(g), as_rows(v), a[:, None], b[:, None]
        at = v_rows if index is None else as_rows(pick(v, index))
        c = as_rows(x) - mean.to(kind)
        w = weight[:, None]
        s, q = w * r, r * r / m
        p, v0, v1 = _sum(at * rows), _sum(v_rows), _sum(v_rows * c)
        t = p - s0 * v0 / m - q * s1 * v1
        k1, k2 = a * r - s * q * v1, -s * q * s1
        k3 = -(r**3) / m * (w * t + a * s1 - 2 * s * r / m * s1 * v1)
        of_grad = _scale_and_shift(at, s, b - s * v0 / m - k1 * mean)
        of_grad = as_images(of_grad.addcmul_(as_rows(x if z is None else z), k1.to(kind)), g)
        if y is not None:
            of_grad = torch.ops.aten.threshold_backward(of_grad, y, 0)
        of_x = _scale_and_shift(v_rows, k2, -(k1 * s0 + k2 * v0) / m).addcmul_(c, k3.to(kind))
        of_x = _add_unpooled(of_x, rows, k1, index, g, x)
        return of_grad, as_images(of_x, x), _sum_shared((r * t)[:, 0], weight), *(None,) * 5


def _add_unpooled(total: Tensor, rows: Tensor, factor: Tensor, index: Tensor | None, g: Tensor, x: Tensor) -> Tensor:
    """``total + factor G``, in place: ``G`` is ``g``, whose rows are given, or its image under un-pooling."""
    factor = factor.to(rows.dtype)
    if index is None:
        return total.addcmul_(rows, factor)
    return total.add_(as_rows(unpool(as_images(rows * factor, g), index, x)))


def _sum_shared(grad: Tensor, weight: Tensor) -> Tensor:
    """The gradient ``[B, C]`` of a weight, summed over tasks where they share it."""
    return grad.sum(0, keepdim=True) if len(weight) == 1 else grad
