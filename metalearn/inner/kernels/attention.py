"""Attention that can be differentiated twice: torch's fused kernels have no second derivative."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.inner.ambient import current

__all__ = ["ATTENTION", "attend", "needs_plain_products"]

ATTENTION: frozenset[Callable[..., Any]] = frozenset((F.scaled_dot_product_attention, F.multi_head_attention_forward))
"""Functions of torch that may call a fused kernel."""


def needs_plain_products() -> bool:
    """Whether a second derivative or a batching rule is needed, which fused kernels have not."""
    mapped = torch._C._functorch.maybe_current_level() is not None
    return mapped or (current().twice_differentiable and torch.is_grad_enabled())


def attend(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What an attention function of torch gives, by plain products where a second derivative or a batching rule is needed.

    ``torch.nn.attention.sdpa_kernel`` would be the process's, not the thread's.
    """
    if not needs_plain_products():
        return func(*args, **kwargs)
    if func is F.scaled_dot_product_attention:
        return _multiply(*args, **kwargs)
    wanted = args[15] if len(args) > 15 else kwargs.get("need_weights", True)
    if wanted:
        return func(*args, **kwargs)
    if len(args) > 15:
        args = (*args[:15], True, *args[16:])
    else:
        kwargs = {**kwargs, "need_weights": True}  # what is given back is computed by plain products
    return func(*args, **kwargs)[0], None


def _multiply(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """``softmax(scale query key' + mask) value``, each product rounded once.

    torch's own composition rounds queries and keys times the root of the scale before, and under autocast the softmax too.
    Gradients of bf16 then err several times as much.
    """
    if is_causal:
        if attn_mask is not None:
            raise RuntimeError("attn_mask is given and is_causal is True, but a mask says all; give one of them")
        attn_mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
    if enable_gqa:
        key, value = (x.repeat_interleave(query.shape[-3] // x.shape[-3], -3) for x in (key, value))
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    power = 2.0 ** (
        math.frexp(scale)[1] - 1
    )  # a factor that rounds nothing, and keeps scores within the range of float16
    scores = (query * power) @ key.transpose(-1, -2)
    scores = scores if scale == power else scores * (scale / power)
    kind = torch.float32 if torch.is_autocast_enabled(scores.device.type) else scores.dtype
    if attn_mask is None:
        weights = scores.softmax(-1, dtype=kind)
    else:
        if attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros_like(attn_mask, dtype=scores.dtype).masked_fill(~attn_mask, float("-inf"))
        weights = torch.ops.aten._safe_softmax(scores + attn_mask, -1, kind)  # 0 for what attends to nothing
    if dropout_p > 0:
        weights = F.dropout(weights, dropout_p)
    return weights.to(value.dtype) @ value
