"""A mean over tasks and its interval, which whoever reads results needs without torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Interval", "interval", "measure_interval"]


class Interval(NamedTuple):
    """A mean over tasks.

    Attributes:
        mean: the mean over tasks.
        ci95: half the width of its 95 % interval, ``1.96 * s / sqrt(T)``, ``s`` the sample standard deviation.
        tasks: the number ``T`` of tasks.

    Example:
        >>> from metalearn.metrics import Interval
        >>> print(Interval(mean=0.9731, ci95=0.0025, tasks=600))
        97.31 % ± 0.25 (600 tasks)
    """

    mean: float
    ci95: float
    tasks: int

    def __str__(self) -> str:
        return f"{100 * self.mean:.2f} % ± {100 * self.ci95:.2f} ({self.tasks} tasks)"


def interval(values: Tensor) -> Interval:
    """Mean and 95 % interval of per-task values ``[T]``, summed exactly so that the order of tasks does not matter.

    Example:
        >>> import torch
        >>> from metalearn.metrics import interval
        >>> interval(torch.tensor([0.5, 1.0, 0.75])).mean
        0.75
    """
    return measure_interval(values.double().tolist())


def measure_interval(numbers: Sequence[float]) -> Interval:
    """:func:`interval` of plain numbers.

    Example:
        >>> from metalearn.intervals import measure_interval
        >>> measure_interval([0.5, 1.0, 0.75]).mean
        0.75
    """
    tasks = len(numbers)
    if tasks == 0:
        return Interval(math.nan, math.nan, 0)
    mean = math.fsum(numbers) / tasks
    if tasks == 1:
        return Interval(mean, math.nan, 1)
    variance = math.fsum((number - mean) ** 2 for number in numbers) / (tasks - 1)
    return Interval(mean, 1.96 * math.sqrt(variance / tasks), tasks)
