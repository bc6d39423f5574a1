"""Small networks and noise episodes for the gradient tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from metalearn import Batch, Episode


class PlainWeightNorm(TorchFunctionMode):
    """Weight normalisation of rows by its formula: the second derivative of torch's own is wrong."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch._weight_norm:
            return func(*args, **(kwargs or {}))
        v, g, _ = args
        return g * v / v.square().sum(1, keepdim=True).sqrt()


class TinyConv(nn.Module):
    """Two blocks with batch normalisation and max-pooling, and a head."""

    def __init__(self, ways: int = 3) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Linear(16, ways)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class Room(torch.autograd.Function):
    """Its argument, unless more tasks than there is room for come at once: then what torch raises when a GPU is full."""

    room = 1 << 30
    most = 0

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        return

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.clone()

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor) -> tuple[Tensor, int]:
        if info.batch_size > Room.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        Room.most = max(Room.most, info.batch_size)
        return Room.apply(x), in_dims[0]


def noise_episode(
    tasks: int = 3, ways: int = 3, shots: int = 2, queries: int = 3, shape: tuple[int, ...] = (1, 8, 8), seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Episode:  # fmt: skip
    """Noise, because ties in max-pooling make correct implementations differ."""
    generator = torch.Generator().manual_seed(seed)

    def part(count: int) -> Batch:
        x = torch.randn(tasks, ways * count, *shape, generator=generator, dtype=dtype)
        return Batch(x, torch.arange(ways).repeat_interleave(count).repeat(tasks, 1))

    return Episode(part(shots), part(queries))
