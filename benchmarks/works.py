"""The work of the inner-loop benchmark: networks and episodes of noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from metalearn import Batch, Conv4, Episode

__all__ = ["WORKS", "Work", "flops", "network", "noise"]


@dataclass(frozen=True)
class Work:
    """A meta-batch: how many tasks of which size, and how they are adapted."""

    name: str
    tasks: int = 16
    shots: int = 1
    queries: int = 15
    steps: int = 5
    lr: float = 0.4
    channels: int = 1
    size: int = 28
    hidden: int = 64
    order: int = 2
    algorithm: str = "maml"

    @property
    def title(self) -> str:
        kind = {"maml": "MAML", "anil": "ANIL"}[self.algorithm]
        order = "first order" if self.order == 1 else "second order"
        return (
            f"{kind}, {order}, {self.steps} inner steps of {self.lr}: {self.tasks} tasks, 5-way {self.shots}-shot, "
            f"{self.queries} queries a class, Conv4 with {self.hidden} filters, {self.size}x{self.size}x{self.channels}"
        )


WORKS = {
    work.name: work
    for work in (
        Work("second_order"),
        Work("one_step", steps=1),
        Work("first_order", order=1),
        Work("anil", algorithm="anil"),
        Work("miniimagenet", tasks=4, lr=0.01, channels=3, size=84, hidden=32),
        Work("50_steps", tasks=2, steps=50, lr=0.01),
    )
}


def network(work: Work) -> Conv4:
    """The same weights for every system."""
    torch.manual_seed(0)
    return Conv4(5, work.channels, work.hidden, work.size)


def noise(work: Work) -> Episode:
    """Noise, because ties in max-pooling make correct implementations differ."""
    generator = torch.Generator().manual_seed(0)

    def role(count: int) -> Batch:
        shape = (work.tasks, 5 * count, work.channels, work.size, work.size)
        y = torch.arange(5).repeat_interleave(count).repeat(work.tasks, 1)
        return Batch(torch.randn(shape, generator=generator, dtype=torch.float64), y)

    return Episode(role(work.shots), role(work.queries))


def flops(work: Work) -> float:
    """Of the convolutions of one meta-batch: a forward pass counts 1, a backward pass 2, the product with the Hessian 6 more."""
    image, size, inputs = 0.0, work.size, work.channels
    for block in range(4):
        layer = 2.0 * size * size * inputs * work.hidden * 9
        image += layer * (1 if block else 2 / 3)  # the images' own gradient is not taken
        size, inputs = size // 2, work.hidden
    queries, support = 5 * work.queries, 5 * work.shots
    if work.algorithm == "anil":
        return 3 * image * work.tasks * (queries + support)
    inner = 9 if work.order == 2 else 3
    return image * work.tasks * (3 * queries + inner * work.steps * support)
