"""Route what any network computes in its forward pass to our own operators, without touching the network."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from metalearn.inner.kernels.conv import Geometry, conv2d

__all__ = ["OwnOperators", "is_own", "own_kernels"]

_own: ContextVar[frozenset[str]] = ContextVar("metalearn_own_kernels", default=frozenset(("conv", "norm")))


@contextlib.contextmanager
def own_kernels(*names: str) -> Iterator[None]:
    """Within this context only these of our operators (``"conv"``, ``"norm"``) are used; torch's, composed, for the others.

    Without a name: for forward-mode differentiation, and as an oracle. With ``"conv"``: for compilation.
    """
    token = _own.set(frozenset(names))
    try:
        yield
    finally:
        _own.reset(token)


def is_own(name: str) -> bool:
    """Whether our operator of this name is in use."""
    return name in _own.get()


class OwnOperators(TorchFunctionMode):
    """Within this context ``F.conv2d`` is ours where ours is faster, and ``F.linear`` obeys autocast under vmap too.

    Attributes:
        answered: the functions that are looked at. Every call of torch comes by, hundreds in a forward pass, and for all others
            one look-up must do.
    """

    answered: frozenset[Callable[..., Any]] = frozenset((torch.conv2d, F.linear, F.adaptive_avg_pool2d))

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func not in self.answered:
            return func(*args, **kwargs) if kwargs else func(*args)
        return self.answer(func, args, kwargs or {})

    def answer(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What stands for a call of one of the functions that are looked at."""
        if func is torch.conv2d and is_own("conv"):
            found = _read_conv2d(*args, **kwargs)
            if found is not None:
                return conv2d(*found)
        if func is F.linear and torch.is_autocast_enabled(args[0].device.type):
            kind = torch.get_autocast_dtype(args[0].device.type)
            args = tuple(x.to(kind) if isinstance(x, Tensor) and x.is_floating_point() else x for x in args)
        if func is F.adaptive_avg_pool2d and _pair(args[1] if len(args) > 1 else kwargs["output_size"]) == (1, 1):
            x = args[0] if args else kwargs["input"]
            return x.mean((-2, -1), keepdim=True)  # torch's has no batching rule in channels-last order
        return func(*args, **kwargs)


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
