"""Attention that can be differentiated twice: torch's fused kernels have no second derivative."""

from __future__ import annotations

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
    if attn_mask is not None and attn_mask.dtype == torch.bool:  # torch's operator would add the truth values
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, float("-inf"))
    result: Tensor = torch.ops.aten._scaled_dot_product_attention_math(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )[0]
    return result
