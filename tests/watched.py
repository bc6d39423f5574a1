"""Losses that see for themselves how often they are differentiated, by nodes in autograd's graphs."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor

from metalearn.bilevel import OracleCounts

__all__ = ["Passes"]


class _Watch(torch.autograd.Function):
    """The identity, which counts its backward passes under a name; it can be differentiated any number of times."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, passes: Passes, name: str) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _, ctx.passes, ctx.watched = inputs

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:  # type: ignore[override]
        ctx.passes.through[ctx.watched] += 1
        return cotangent.clone(), None, None


class Passes:
    """Backward passes through what is watched, of ``g``, of ``f``, of ``y`` and of ``x``.

    A gradient of ``g`` in ``y`` goes once through ``g`` and once through ``y``. A product with ``H``, which is a derivative of
    that gradient, goes through ``y`` alone, and one with ``J`` through ``x`` alone.
    """

    def __init__(self) -> None:
        self.through: Counter[str] = Counter()

    def watch(self, x: Tensor, name: str) -> Tensor:
        """``x`` itself, whose backward passes are counted."""
        watched: Tensor = _Watch.apply(x, self, name)
        return watched

    def counts(self, problems: int = 1) -> OracleCounts:
        """What they say, of problems that are differentiated at once."""
        f, g, x, y = (problems * self.through[name] for name in "fgxy")
        return OracleCounts(gc_f=f, gc_g=g, jvp=x, hvp=y - g)
