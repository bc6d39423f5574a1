"""The ResNet-12 of the few-shot literature (Lee et al. 2019), without DropBlock."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from metalearn.checks import MOST_OF_A_WIDTH, check_numbers, check_whole
from metalearn.errors import ConfigError

__all__ = ["ResNet12"]


class ResNet12(nn.Module):
    """Four residual stages of three 3x3 convolutions, each halved by max-pooling, then the mean and a linear head.

    Args:
        ways: how many outputs there are, ``N``.
        in_channels: how many channels an image has, ``C``: 1 for grey, 3 for colour.
        widths: how many filters each stage has.

    Shape:
        ``[n, C, H, W] -> [n, N]``.

    Example:
        >>> import torch
        >>> from metalearn import ResNet12
        >>> network = ResNet12(ways=5, widths=[8, 16, 32, 64])
        >>> network(torch.randn(2, 3, 84, 84)).shape
        torch.Size([2, 5])
    """

    def __init__(self, ways: int = 5, in_channels: int = 3, widths: Sequence[int] = (64, 128, 256, 512)) -> None:
        super().__init__()
        check_whole("ways", ways, 1, 100_000)
        check_whole("in_channels", in_channels, 1, MOST_OF_A_WIDTH)
        check_numbers("widths", widths, "use [64, 128, 256, 512]")
        if not widths:
            raise ConfigError("widths is empty, but there must be a stage; use widths=[64, 128, 256, 512]")
        for stage, width in enumerate(widths):
            check_whole(f"widths[{stage}]", width, 1, MOST_OF_A_WIDTH)
        pairs = zip([in_channels, *widths], widths, strict=False)
        self.body = nn.Sequential(*(_Stage(a, b) for a, b in pairs), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(widths[-1], ways)
        self.init_args = {"ways": ways, "in_channels": in_channels, "widths": list(widths)}

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(x))
        return logits


class _Stage(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for index in range(3):
            layers += [
                nn.Conv2d(inputs if index == 0 else outputs, outputs, 3, padding=1, bias=False),
                nn.BatchNorm2d(outputs),
            ]
            if index < 2:
                layers.append(nn.LeakyReLU(0.1))
        self.residual = nn.Sequential(*layers)
        self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.end = nn.Sequential(nn.LeakyReLU(0.1), nn.MaxPool2d(2))

    def forward(self, x: Tensor) -> Tensor:
        merged: Tensor = self.end(self.residual(x) + self.shortcut(x))
        return merged
