"""Route what any network computes in its forward pass to our own operators, without touching the network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from metalearn.inner.ambient import is_own, keeping_everything
from metalearn.inner.kernels.attention import ATTENTION, attend
from metalearn.inner.kernels.conv import Geometry, conv2d
from metalearn.inner.kernels.fully_connected import linear
from metalearn.inner.kernels.weight_norm import normalise_weight

__all__ = ["KERNEL_ANSWERS", "Answer", "Routing"]

Answer = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
"""``answer(function, args, kwargs)`` stands for a call of the function."""


class Routing(TorchFunctionMode):
    """Within this context calls of some of torch's functions are answered by ours.

    Args:
        answers: by function. Every call of torch comes by, hundreds in a forward pass, and for all others one look-up must do.
        keeps_everything: whether what is saved for the backward pass is kept as it is.
    """

    def __init__(self, answers: Mapping[Callable[..., Any], Answer], keeps_everything: bool = False) -> None:
        super().__init__()
        self._answers = answers
        self._keeps_everything = keeps_everything

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if self._keeps_everything:
            with keeping_everything():
                return self._answer(func, args, kwargs or {})
        if func not in self._answers:
            return func(*args, **kwargs) if kwargs else func(*args)
        return self._answers[func](func, args, kwargs or {})

    def _answer(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self._answers[func](func, args, kwargs) if func in self._answers else func(*args, **kwargs)


def _answer_convolution(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if is_own("conv"):
        call = _read_conv2d(*args, **kwargs)
        if call is not None:
            return conv2d(*call)
    return func(*args, **kwargs)


def _answer_linear(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Obey autocast under vmap too, where torch's does not."""
    call = _read_linear(*args, **kwargs)
    device = call[0].device.type
    if torch.is_autocast_enabled(device):
        kind = torch.get_autocast_dtype(device)
        call = tuple(x.to(kind) if isinstance(x, Tensor) and x.is_floating_point() else x for x in call)
    return linear(*call) if is_own("linear") else func(*call)


def _answer_average_pool(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The mean: torch's has no batching rule in channels-last order, which our convolutions bring about."""
    if is_own("conv") and _pair(args[1] if len(args) > 1 else kwargs["output_size"]) == (1, 1):
        x = args[0] if args else kwargs["input"]
        return x.mean((-2, -1), keepdim=True)
    return func(*args, **kwargs)


def _answer_weight_norm(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return normalise_weight(*args, **kwargs)


KERNEL_ANSWERS: dict[Callable[..., Any], Answer] = {
    torch.conv2d: _answer_convolution,
    F.linear: _answer_linear,
    F.adaptive_avg_pool2d: _answer_average_pool,
    torch._weight_norm: _answer_weight_norm,
    **dict.fromkeys(ATTENTION, attend),
}
"""What stands for torch's functions, but for normalisation, which has a policy."""


def _read_linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Any, ...]:
    return input, weight, bias


def _read_conv2d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1,
) -> tuple[Tensor, Tensor, Tensor | None, Geometry] | None:  # fmt: skip
    if isinstance(padding, str) or input.ndim != 4 or not input.is_floating_point():
        return None
    return input, weight, bias, Geometry(_pair(stride), _pair(padding), _pair(dilation), int(groups))


def _pair(value: Any) -> tuple[int, int]:
    both = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    return int(both[0] or 0), int(both[-1] or 0)
