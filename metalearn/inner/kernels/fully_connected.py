"""The product of a linear layer where every task has weights of its own.

Of ``x W^T`` over tasks, autograd gives the gradient of ``W`` transposed in memory. Where the weights are larger than the inputs,
what follows on it is most of the time then: the inner step, its derivative, and the sum over tasks. Of ``(W x^T)^T`` it comes as
the weights lie.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["is_wide", "linear"]

LEAST_WIDTHS = 4
"""How many times its inputs the widths of a layer must be."""


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As ``torch.nn.functional.linear``: ``input`` ``[..., C]`` with ``weight`` ``[D, C]`` gives ``[..., D]``.

    Under ``torch.func.vmap``, with weights that differ between tasks and few inputs a task, the weights come first.
    """
    if not is_wide(input, weight):
        return F.linear(input, weight, bias)
    y = (weight @ input.reshape(-1, weight.shape[1]).mT).mT.reshape(*input.shape[:-1], weight.shape[0])
    return y if bias is None else y + bias


def is_wide(input: Tensor, weight: Tensor) -> bool:
    """Whether the weights have an axis of vmap, and are much larger than inputs and outputs."""
    if not torch._C._functorch.is_batchedtensor(weight) or weight.ndim != 2 or input.ndim < 2:
        return False
    return input.shape[-1] == weight.shape[1] and LEAST_WIDTHS * input.shape[:-1].numel() <= min(weight.shape)
