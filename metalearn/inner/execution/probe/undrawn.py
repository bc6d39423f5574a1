"""A mode in which dropout draws nothing, since its masks are other ones in every way of running."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from metalearn.inner.ambient import keeping_everything
from metalearn.inner.kernels.weight_norm import normalise_weight

__all__ = ["WithoutDropout"]

_DROPOUT = (
    F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout, torch.dropout,
    torch.feature_dropout, torch.alpha_dropout, torch.feature_alpha_dropout,
)  # fmt: skip


class WithoutDropout(TorchFunctionMode):
    """Dropout draws nothing and drops nothing, that of attention neither; weight normalisation is twice differentiable.

    Args:
        checkpoints: whether there is activation checkpointing, which is undone.

    Attributes:
        attends: whether fused attention was called.
        forces_batch_statistics: whether ``F.batch_norm`` takes batch statistics whatever its argument ``training`` says.
        training_flags: that argument of every call.
    """

    def __init__(self, checkpoints: bool) -> None:
        super().__init__()
        self._checkpoints = checkpoints
        self.attends = self.forces_batch_statistics = False
        self.training_flags: list[bool] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if self._checkpoints:
            with keeping_everything():
                return self._answer(func, args, dict(kwargs or {}))
        return self._answer(func, args, dict(kwargs or {}))

    def _answer(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func in _DROPOUT:
            return args[0] if args else kwargs["input"]
        if func is F.batch_norm:
            self.training_flags.append(bool(args[5] if len(args) > 5 else kwargs.get("training", False)))
            if self.forces_batch_statistics:
                args, kwargs = _set_argument(args, kwargs, 5, "training", True)
        if func is torch._weight_norm:
            return normalise_weight(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            self.attends = True
            args, kwargs = _set_argument(args, kwargs, 4, "dropout_p", 0.0)
        elif func is F.multi_head_attention_forward:
            self.attends = self.attends or not kwargs.get("need_weights", True)
            args, kwargs = _set_argument(args, kwargs, 10, "dropout_p", 0.0)
        return func(*args, **kwargs)


def _set_argument(
    args: tuple[Any, ...], kwargs: dict[str, Any], position: int, name: str, value: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with another value for that at ``position``, called ``name``."""
    if len(args) > position:
        return (*args[:position], value, *args[position + 1 :]), kwargs
    return args, {**kwargs, name: value}
