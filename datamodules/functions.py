"""Tasks that a function makes: regression of functions, simulations, anything that can be drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metalearn.checks import check_function
from metalearn.datamodules.episodes.arguments import LoaderArguments, Unpack, spell_out
from metalearn.datamodules.episodes.base import EpisodicDataModule
from metalearn.datamodules.episodes.randomness import make_task_generator
from metalearn.episode import Batch, Episode
from metalearn.errors import DataError

__all__ = ["FunctionEpisodes"]

Pair = tuple[Any, Any]
TaskFunction = Callable[[np.random.Generator], tuple[Pair, Pair]]


class FunctionEpisodes(EpisodicDataModule):
    """Episodes that ``function`` makes, one task a call, each a pure function of (seed, split, index).

    Args:
        function: ``function(generator) -> ((support_x, support_y), (query_x, query_y))``: arrays or tensors ``[n, ...]``, of the
            same shapes for every task. It draws from the NumPy generator that it is given, which belongs to the task, and from
            nothing else. Float targets are a regression, whole numbers are classes.

    Shape:
        ``x`` ``[B, n, ...]`` and ``y`` ``[B, n, ...]``, float32 or int64.

    Raises:
        ConfigError: an argument is out of range.
        DataError: a task is not a pair of pairs, or differs in shape from another (when it is drawn).

    Example:
        >>> from metalearn.datamodules import FunctionEpisodes
        >>> def line(generator):
        ...     slope, x = generator.normal(), generator.uniform(-1, 1, (15, 1))
        ...     return (x[:5], slope * x[:5]), (x[5:], slope * x[5:])
        >>> FunctionEpisodes(line).episode(seed=0, split="train", index=3).support.x.shape
        torch.Size([5, 1])
    """

    @spell_out(LoaderArguments, tasks_per_batch=25, train_tasks=2500, val_tasks=100)
    def __init__(self, function: TaskFunction, **arguments: Unpack[LoaderArguments]) -> None:
        super().__init__(**arguments)
        check_function("function", function, "write a function of a generator that makes a task")
        self.function = function

    def draw(self, seed: int, split: str, indices: list[int]) -> Episode:
        tasks = [self._make(seed, split, index) for index in indices]
        shapes = {tuple(tuple(tensor.shape) for tensor in task) for task in tasks}
        if len(shapes) > 1:
            first, second = sorted(shapes)[:2]
            raise DataError(
                f"function made tasks of the shapes {first} and {second} in one batch, but all must be alike; draw a fixed "
                "number of points"
            )
        support_x, support_y, query_x, query_y = map(torch.stack, zip(*tasks, strict=True))
        return Episode(Batch(support_x, support_y), Batch(query_x, query_y))

    def _make(self, seed: int, split: str, index: int) -> list[Tensor]:
        made = self.function(make_task_generator(seed, split, index))
        try:
            (support_x, support_y), (query_x, query_y) = made
        except (TypeError, ValueError) as error:
            raise DataError(
                f"function made a {type(made).__name__} for {split} task {index}, but it must make ((support_x, "
                "support_y), (query_x, query_y)); change what it returns"
            ) from error
        return [_make_tensor(value) for value in (support_x, support_y, query_x, query_y)]


def _make_tensor(value: Any) -> Tensor:
    tensor = torch.as_tensor(value)
    return tensor.float() if tensor.is_floating_point() else tensor.long()
