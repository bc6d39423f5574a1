"""Batch normalisation by given statistics, composed of torch's operators."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.batchnorm import SyncBatchNorm, _BatchNorm
from torch.nn.utils.parametrize import is_parametrized

__all__ = ["Moments", "compute_moments", "finish_block", "is_plain", "scale_and_shift"]

Moments = tuple[Tensor, Tensor]
"""Mean and variance ``[C]``."""


def is_plain(layer: _BatchNorm) -> bool:
    """Whether the layer computes what torch's own does, with parameters of its own."""
    stock = type(layer).forward in (_BatchNorm.forward, SyncBatchNorm.forward) and "forward" not in layer.__dict__
    held = {"weight", "bias"} <= layer._parameters.keys()
    return stock and held and not is_parametrized(layer)


def compute_moments(x: Tensor) -> Moments:
    """Mean and variance of ``x`` ``[n, C, ...]``, as torch's var_mean but some 40 times faster on a CPU."""
    # bf16 carries 8 bits of mantissa: a mean over n*H*W values has to be summed in fp32
    x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    axes = [axis for axis in range(x.ndim) if axis != 1]
    mean = x.mean(axes, keepdim=True)
    return mean.flatten(), ((x - mean) ** 2).mean(axes)


def scale_and_shift(x: Tensor, moments: Moments, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """``weight (x - mean) / sqrt(var + eps) + bias`` for ``x`` ``[n, C, ...]``."""
    mean, var = moments
    scale = torch.rsqrt(var + eps)
    if weight is not None:
        scale = scale * weight
    shift = -mean * scale
    if bias is not None:
        shift = shift + bias
    scale, shift = (value.view((1, -1) + (1,) * (x.ndim - 2)) for value in (scale, shift))
    # in one pass; torch 2.6 cannot export that
    if scale.dtype == shift.dtype == x.dtype and not torch.compiler.is_compiling():
        return torch.addcmul(shift, x, scale)
    return (x * scale + shift).to(x.dtype)


def finish_block(x: Tensor, pools: bool, rectifies: bool) -> Tensor:
    """``x`` ``[n, C, H, W]`` after 2x2 max-pooling and rectification, where they are asked for."""
    x = F.max_pool2d(x, 2) if pools else x
    return x.relu() if rectifies else x
