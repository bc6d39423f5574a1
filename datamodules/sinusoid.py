"""Regression of sinusoids (Finn et al. 2017, section 5.1)."""

from __future__ import annotations

import math

import numpy as np
import torch

from metalearn.checks import check_number, check_whole
from metalearn.datamodules.episodes.arguments import LoaderArguments, Unpack, spell_out
from metalearn.datamodules.episodes.base import EpisodicDataModule
from metalearn.datamodules.episodes.randomness import draw_uniform
from metalearn.episode import Batch, Episode

__all__ = ["SinusoidDataModule"]


class SinusoidDataModule(EpisodicDataModule):
    """Tasks ``y = a sin(x - p)`` with amplitude ``a`` in [0.1, 5], phase ``p`` in [0, pi] and ``x`` in [-5, 5].

    Args:
        shots: how many support points a task has, ``K``.
        queries: how many query points a task has, ``Q``.
        noise: the deviation of Gaussian noise on ``y``, support and queries alike.

    Shape:
        ``x`` ``[B, n, 1]`` and ``y`` ``[B, n, 1]``, float32.

    Example:
        >>> from metalearn.datamodules import SinusoidDataModule
        >>> data = SinusoidDataModule(shots=5, queries=20)
        >>> task = data.episode(seed=0, split="train", index=3)
        >>> task.support.x.shape, task.query.y.shape
        (torch.Size([5, 1]), torch.Size([20, 1]))
    """

    @spell_out(LoaderArguments, tasks_per_batch=25, train_tasks=12500, val_tasks=100)
    def __init__(
        self, shots: int = 10, queries: int = 10, noise: float = 0.0, **arguments: Unpack[LoaderArguments]
    ) -> None:
        check_whole("shots", shots, 1)
        check_whole("queries", queries, 1)
        check_number("noise", noise, "use 0.0 for none", least=0)
        super().__init__(**arguments)
        self.shots, self.queries, self.noise = shots, queries, noise

    def draw(self, seed: int, split: str, indices: list[int]) -> Episode:
        points = self.shots + self.queries
        # further slots leave the numbers of the first ones as they are
        uniform = draw_uniform(seed, split, np.asarray(indices, np.int64), 2 + points * (3 if self.noise else 1))
        amplitude = 0.1 + 4.9 * uniform[:, :1]
        phase = math.pi * uniform[:, 1:2]
        x = -5.0 + 10.0 * uniform[:, 2 : 2 + points]
        y = amplitude * np.sin(x - phase)
        if self.noise:
            radius, angle = uniform[:, 2 + points : 2 + 2 * points], uniform[:, 2 + 2 * points :]
            y += self.noise * np.sqrt(-2 * np.log1p(-radius)) * np.cos(2 * math.pi * angle)  # Box and Muller 1958
        pairs = torch.from_numpy(np.stack([x, y])).float()[..., None]
        return Episode(
            Batch(*(part[:, : self.shots].contiguous() for part in pairs)),
            Batch(*(part[:, self.shots :].contiguous() for part in pairs)),
        )
