"""The work of the inner-loop benchmark: networks and episodes of noise."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

import metalearn
from metalearn import Batch, Episode

__all__ = ["SEQUENCES", "WORKS", "Work", "flops", "network", "noise", "reduce"]

VOCABULARY = 1000
SEQUENCES = ("transformer", "lstm")
"""Backbones that read tokens."""


@dataclass(frozen=True)
class Work:
    """A meta-batch: how many tasks of which size, and how they are adapted.

    Attributes:
        size: pixels a side, or the tokens of the longest sequence.
        hidden: filters, of ``resnet12`` in its first stage; of sequences the numbers that stand for a token; the width of
            the first layer of ``fully_connected``.
        backbone: ``"conv4"``, ``"resnet12"``, ``"fully_connected"``, ``"transformer"`` or ``"lstm"``.
        downsample: of ``conv4``, as :class:`~metalearn.backbones.Conv4` has it.
    """

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
    backbone: str = "conv4"
    downsample: Literal["pool", "stride"] = "pool"

    @property
    def title(self) -> str:
        kind = {"maml": "MAML", "anil": "ANIL"}[self.algorithm]
        order = "first order" if self.order == 1 else "second order"
        network = "strided Conv4" if self.downsample == "stride" else "Conv4"
        what = {
            "conv4": f"{network} with {self.hidden} filters, {self.size}x{self.size}x{self.channels}",
            "resnet12": f"ResNet-12 with {self.hidden} to {8 * self.hidden} filters, {self.size}x{self.size}x{self.channels}",
            "fully_connected": f"layers of widths {', '.join(map(str, self.widths))}, {self.size}x{self.size}x{self.channels}",
            "transformer": f"a transformer of width {self.hidden}, up to {self.size} tokens",
            "lstm": f"an LSTM of width {self.hidden} each way, up to {self.size} tokens",
        }[self.backbone]
        return (
            f"{kind}, {order}, {_count(self.steps, 'inner step')} of {self.lr}: {_count(self.tasks, 'task')}, "
            f"5-way {self.shots}-shot, {_count(self.queries, 'query', 'queries')} a class, {what}"
        )

    @property
    def widths(self) -> list[int]:
        """Of the layers of ``fully_connected``, without the head."""
        return [self.hidden, self.hidden // 2, self.hidden // 4, self.hidden // 4]


def _count(number: int, one: str, more: str | None = None) -> str:
    return f"{number} {one if number == 1 else more or one + 's'}"


WORKS = {
    work.name: work
    for work in (
        Work("second_order"),
        Work("one_step", steps=1),
        Work("strided", queries=5, steps=1, downsample="stride"),  # the network and the tasks of metalearn fit
        Work("first_order", order=1),
        Work("anil", algorithm="anil"),
        Work("miniimagenet", tasks=4, lr=0.01, channels=3, size=84, hidden=32),
        Work("50_steps", tasks=2, steps=50, lr=0.01),
        Work("resnet12", tasks=2, queries=1, steps=1, lr=0.01, channels=3, size=84, backbone="resnet12"),
        Work("resnet12_anil", tasks=2, queries=2, channels=3, size=84, algorithm="anil", backbone="resnet12"),
        # the network and the tasks of learn2learn's example for Omniglot
        Work("fully_connected", tasks=32, queries=1, steps=1, lr=0.5, hidden=256, backbone="fully_connected"),
        Work("transformer", tasks=8, lr=0.1, size=32, backbone="transformer"),
        Work("lstm", tasks=4, lr=0.1, size=16, backbone="lstm"),
    )
}


def network(work: Work) -> nn.Module:
    """The same weights for every system."""
    torch.manual_seed(0)
    make: dict[str, Callable[[], nn.Module]] = {
        "conv4": lambda: metalearn.Conv4(5, work.channels, work.hidden, work.size, work.downsample),
        "resnet12": lambda: metalearn.ResNet12(5, work.channels, [work.hidden * 2**stage for stage in range(4)]),
        "fully_connected": lambda: _connect(work),
        "transformer": lambda: metalearn.TransformerClassifier(5, VOCABULARY, work.hidden),
        "lstm": lambda: metalearn.LSTMClassifier(5, VOCABULARY, work.hidden, work.hidden),
    }
    return make[work.backbone]()


def _connect(work: Work) -> nn.Module:
    widths = [work.channels * work.size**2, *work.widths]
    layers = (
        (nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs, track_running_stats=False), nn.ReLU())
        for inputs, outputs in itertools.pairwise(widths)
    )
    return nn.Sequential(nn.Flatten(), *itertools.chain.from_iterable(layers), nn.Linear(widths[-1], 5))


def noise(work: Work) -> Episode:
    """Noise, because ties in max-pooling make correct implementations differ; or random tokens, padded with zeros."""
    generator = torch.Generator().manual_seed(0)

    def images(count: int) -> Tensor:
        shape = (work.tasks, 5 * count, work.channels, work.size, work.size)
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def tokens(count: int) -> Tensor:
        shape = (work.tasks, 5 * count, work.size)
        drawn = torch.randint(1, VOCABULARY, shape, generator=generator)
        lengths = torch.randint(work.size // 4 + 1, work.size + 1, shape[:2], generator=generator)
        return drawn * (torch.arange(work.size) < lengths[..., None])

    def role(count: int) -> Batch:
        y = torch.arange(5).repeat_interleave(count).repeat(work.tasks, 1)
        return Batch((tokens if work.backbone in SEQUENCES else images)(count), y)

    return Episode(role(work.shots), role(work.queries))


def reduce(work: Work) -> Work:
    """What gradients are compared on in float64: two tasks, two steps; a ResNet-12 takes images of any size, so small ones."""
    smaller = replace(work, tasks=min(work.tasks, 2), steps=min(work.steps, 2))
    return replace(smaller, size=min(work.size, 32)) if work.backbone == "resnet12" else smaller


def flops(work: Work) -> float | None:
    """Of the convolutions of one meta-batch: a forward pass counts 1, a backward pass 2, the product with the Hessian 6 more.

    ``None`` for networks without convolutions.
    """
    if work.backbone in (*SEQUENCES, "fully_connected"):
        return None
    image = 0.0
    for inputs, outputs, side, kernel in _convolutions(work):
        # the images' own gradient is not taken
        image += 2.0 * side * side * inputs * outputs * kernel**2 * (2 / 3 if inputs == work.channels else 1)
    queries, support = 5 * work.queries, 5 * work.shots
    if work.algorithm == "anil":
        return 3 * image * work.tasks * (queries + support)
    inner = 9 if work.order == 2 else 3
    return image * work.tasks * (3 * queries + inner * work.steps * support)


def _convolutions(work: Work) -> list[tuple[int, int, int, int]]:
    """Input and output channels, side of the image and of the kernel."""
    layers, size, inputs = [], work.size, work.channels
    strided = work.downsample == "stride"
    for block in range(4):
        if strided:
            size = (size + 1) // 2
        if work.backbone == "conv4":
            layers.append((inputs, work.hidden, size, 3))
            inputs = work.hidden
        else:
            width = work.hidden * 2**block
            layers += [
                (inputs, width, size, 3),
                (width, width, size, 3),
                (width, width, size, 3),
                (inputs, width, size, 1),
            ]
            inputs = width
        if not strided:
            size //= 2
    return layers
