"""Modules and tasks for the tests of adapted models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from metalearn import ANIL, MAML, Baseline, Batch, MetaModule

SHAPE = (1, 8, 8)


class Normed(nn.Module):
    """A convolution, a normalisation of two calls, one of features, and a head."""

    def __init__(self, norm: Callable[[int], nn.Module] = nn.BatchNorm2d, ways: int = 3) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3), norm(4)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(144, 6), nn.Tanh())
        self.head = nn.Linear(6, ways)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.norm(self.conv(x)).relu()))


class Twice(Normed):
    """The same layer normalises twice, and a function once."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.norm(self.conv(x)).relu() + 1)
        return self.head(self.body(nn.functional.batch_norm(x, None, None, training=True)))


def group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(2, channels)


STEPS = {"inner_steps": 2, "inner_lr": 0.3}
MODULES: dict[str, Callable[[], MetaModule]] = {
    "maml": lambda: MAML(Normed(), **STEPS),
    "support": lambda: MAML(Normed(), **STEPS, norm="support"),
    "running": lambda: MAML(Normed(), **STEPS, norm="running"),
    "per_step": lambda: MAML(Normed(), **STEPS, norm="per_step"),
    "twice": lambda: MAML(Twice(), **STEPS),
    "group": lambda: MAML(Normed(group_norm), **STEPS),
    "anil": lambda: ANIL(Normed(), **STEPS),
    "anil_per_step": lambda: ANIL(Normed(), **STEPS, norm="per_step"),
    "cosine": lambda: Baseline(Normed(), classifier="cosine"),
    "ridge": lambda: ANIL(Normed(), head_solver="ridge"),
}  # fmt: skip


def make(name: str, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    return MODULES[name]().to(dtype).eval()


def draw(*tasks: int, count: int = 6, ways: int = 3, dtype: torch.dtype = torch.float32, seed: int = 0) -> Batch:
    """A support set of noise, with these axes in front."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*tasks, count, *SHAPE, generator=generator, dtype=dtype)
    return Batch(x, (torch.arange(count) % ways).expand(*tasks, count))


def draw_queries(count: int = 5, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(9), dtype=dtype)
