"""Batch normalisation of many tasks, each by its own statistics, fused with the pooling and rectification that follow it.

A scale per channel commutes with max-pooling up to its sign, so that the affine map and the rectification work on a quarter
of the values. First and second derivatives are written out; each full-size tensor is passed over as few times as the formulas
allow. Under ``torch.func.vmap`` torch's own layer has silently wrong second derivatives; this has not.

For each task and channel, with ``m`` values, ``c = x - mean(x)``, ``r = (mean(c^2) + eps)^(-1/2)``, ``z`` the pooled ``c`` and
``s = weight * r``, the output is ``relu(s z + bias)``. With ``g`` the gradient where the output is positive, ``G`` its image
under un-pooling, ``S0 = sum g`` and ``S1 = sum g z``, the gradients are::

    x: s (G - S0 / m - r^2 S1 c / m)    weight: r S1    bias: S0
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from metalearn.inner.kernels.conv import channels_last, merge

__all__ = ["accumulator", "images", "normalise", "pick", "pool", "rows_of", "unpool"]


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
        kind = accumulator(x)
        weight = torch.ones(x.shape[1], device=x.device, dtype=kind) if weight is None else weight.to(kind)
        bias = torch.zeros(x.shape[1], device=x.device, dtype=kind) if bias is None else bias.to(kind)
        y: Tensor = _Normalise.apply(x[None], weight[None], bias[None], eps, pool, relu)[0]
        return y.squeeze(0)  # indexing would cost a copy in the backward pass


def accumulator(x: Tensor) -> torch.dtype:
    """What sums over ``x`` are kept in: 8 bits of mantissa do not carry a mean over many values."""
    return torch.float32 if x.dtype in (torch.bfloat16, torch.float16) else x.dtype


def rows_of(x: Tensor) -> Tensor:
    """``[B, n, C, H, W]`` as ``[B, n H W, C]``."""
    return channels_last(x).permute(0, 1, 3, 4, 2).flatten(1, 3)


def images(rows: Tensor, like: Tensor) -> Tensor:
    """``[B, n H W, C]`` as ``[B, n, C, H, W]``, the axes of ``like``."""
    tasks, n, _, height, width = like.shape
    return rows.view(tasks, n, height, width, -1).permute(0, 1, 4, 2, 3)


def _sum(rows: Tensor) -> Tensor:
    return rows.sum(1, keepdim=True, dtype=accumulator(rows))


def _affine(rows: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """``scale * rows + shift`` with ``[B, 1, C]`` factors."""
    return torch.addcmul(shift.to(rows.dtype), rows, scale.to(rows.dtype))


def pool(x: Tensor) -> tuple[Tensor, Tensor]:
    """2x2 maxima of ``[B, n, C, H, W]`` and their places."""
    y, index = F.max_pool2d(x.flatten(0, 1), 2, return_indices=True)
    return y.unflatten(0, x.shape[:2]), index.unflatten(0, x.shape[:2])


def pick(x: Tensor, index: Tensor) -> Tensor:
    """The values at the places that pooling chose."""
    return x.flatten(3).gather(3, index.flatten(3)).view(index.shape)


def unpool(values: Tensor, index: Tensor, like: Tensor) -> Tensor:
    """Put pooled values back at the places they came from, among zeros."""
    found = torch.ops.aten.max_pool2d_with_indices_backward(
        values.flatten(0, 1), like.flatten(0, 1), [2, 2], [2, 2], [0, 0], [1, 1], False, index.flatten(0, 1)
    )
    return found.unflatten(0, like.shape[:2])


class _Normalise(torch.autograd.Function):
    """Its outputs beyond the first are what the backward pass needs: mean, ``r``, and pooled values with their places."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float, pools: bool, relu: bool) -> tuple[Tensor, ...]:
        x = channels_last(x)
        rows = rows_of(x)
        count = rows.shape[1]
        mean = _sum(rows) / count
        centred = rows - mean.to(rows.dtype)
        r = torch.rsqrt(_sum(centred.mul_(centred)) / count + eps)
        scale = weight[:, None] * r
        shift = bias[:, None] - scale * mean
        if not pools:
            y = _affine(rows, scale, shift)
            return images(y.relu_() if relu else y, x).data, mean, r  # no view, so that it may be written to in place
        if x.device.type == "cpu" and bool((scale > 0).all()):  # elsewhere the question would wait for the device
            z, index = pool(x)
        else:
            _, index = pool(images(rows * scale.sign().to(rows.dtype), x))
            z = pick(x, index)
        y = _affine(rows_of(z), scale, shift)
        return images(y.relu_() if relu else y, z).data, mean, r, z, index

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
        found = _Normalise.apply(x.expand(tasks, *x.shape[1:]), weight, bias, *args[3:])
        return tuple(each.unsqueeze(1) for each in found), (0,) * len(found)


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
        x, grad = channels_last(x), channels_last(grad)
        g = grad if y is None else torch.ops.aten.threshold_backward(grad, y, 0)
        rows, kind = rows_of(g), g.dtype
        s0 = _sum(rows)
        s1 = _sum(rows * (rows_of(x if z is None else z) - mean.to(kind)))
        m = x.shape[1] * x.shape[3] * x.shape[4]
        scale = weight[:, None] * r
        slope = -scale * r * r * s1 / m
        of_x = _affine(rows_of(x), slope, -scale * s0 / m - slope * mean)
        if index is None:
            of_x = of_x.addcmul_(rows, scale.to(kind))
        else:
            of_x = of_x.add_(rows_of(unpool(images(rows * scale.to(kind), g), index, x)))
        ctx.save_for_backward(g, x, weight, mean, r, z, index, y, s0, s1)
        return images(of_x, x), _shared((r * s1)[:, 0], weight), _shared(s0[:, 0], weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v: Tensor, a: Tensor, b: Tensor) -> tuple[Any, ...]:
        """From cotangents of the three gradients to those of ``grad``, ``x`` and ``weight``."""
        g, x, weight, mean, r, z, index, y, s0, s1 = ctx.saved_tensors
        kind = g.dtype
        m = x.shape[1] * x.shape[3] * x.shape[4]
        v = channels_last(v)
        along, a, b = rows_of(v), a[:, None], b[:, None]
        centred = rows_of(x) - mean.to(kind)
        s, q = weight[:, None] * r, r * r / m
        rows = rows_of(g)
        at = along if index is None else rows_of(pick(v, index))
        v0, v1, p = _sum(along), _sum(along * centred), _sum(at * rows)
        inner = p - s0 * v0 / m - q * s1 * v1
        k1 = a * r - s * q * v1
        of_grad = _affine(at, s, b - s * v0 / m - k1 * mean)
        of_grad = images(of_grad.addcmul_(rows_of(x if z is None else z), k1.to(kind)), g)
        if y is not None:
            of_grad = torch.ops.aten.threshold_backward(of_grad, y, 0)
        of_r = weight[:, None] * inner - 2 * s * r / m * s1 * v1 + a * s1
        k2 = -s * q * s1
        of_x = _affine(along, k2, -(k1 * s0 + k2 * v0) / m)
        of_x = of_x.addcmul_(centred, (-of_r * r**3 / m).to(kind))
        if index is None:
            of_x = of_x.addcmul_(rows, k1.to(kind))
        else:
            of_x = of_x.add_(rows_of(unpool(images(rows * k1.to(kind), g), index, x)))
        return of_grad, images(of_x, x), _shared((r * inner)[:, 0], weight), *(None,) * 5


def _shared(grad: Tensor, weight: Tensor) -> Tensor:
    """The gradient ``[B, C]`` of a weight, summed over tasks where they share it."""
    return grad.sum(0, keepdim=True) if len(weight) == 1 else grad
