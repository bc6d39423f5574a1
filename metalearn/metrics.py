"""Few-shot metrics: one number a task, its mean over all tasks and ranks, and the interval of that mean."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from metalearn.intervals import Interval, interval

__all__ = ["EpisodeAccuracy", "EpisodeMean", "Interval", "count_right", "interval"]


class EpisodeMean(Metric):
    """Per-task values, gathered over ranks. Their ``compute()`` gives an :class:`Interval`.

    Under DDP the values of all ranks are gathered, each once, so the interval is that of a run on one process.

    Example:
        >>> import torch
        >>> from metalearn.metrics import EpisodeMean
        >>> metric = EpisodeMean()
        >>> metric.update(torch.tensor([0.5, 1.0]), tasks=torch.tensor([0, 1]))
        >>> metric.compute().mean, metric.compute().tasks
        (0.75, 2)
    """

    full_state_update = False
    higher_is_better: bool | None = False
    tasks: list[Tensor]
    values: list[Tensor]
    gathered: tuple[Tensor, Tensor] | None
    """After :meth:`compute`: the task numbers ``[T]`` of all ranks in ascending order, and their values ``[T]``."""

    def __init__(self) -> None:
        super().__init__()
        self.gathered = None
        self.add_state("tasks", [], dist_reduce_fx="cat")
        self.add_state("values", [], dist_reduce_fx="cat")
        self.reset()

    def reset(self) -> None:
        """Forget all tasks. An empty tensor stays behind, so that a rank without tasks can still take part in gathering."""
        super().reset()
        self.tasks.append(torch.zeros(0, dtype=torch.int64, device=self.device))
        self.values.append(torch.zeros(0, dtype=torch.float64, device=self.device))

    def update(self, values: Tensor, tasks: Tensor) -> None:
        """Add the values ``[B]`` of the tasks with the numbers ``[B]``."""
        self.values.append(values.detach().double().reshape(-1))
        self.tasks.append(tasks.reshape(-1))

    def compute(self) -> Interval:
        """Mean and interval over all tasks of all ranks."""
        tasks, values = dim_zero_cat(self.tasks), dim_zero_cat(self.values)
        order = torch.argsort(tasks)
        self.gathered = tasks[order].cpu(), values[order].cpu()
        return interval(self.gathered[1])


def count_right(logits: Tensor, targets: Tensor, ignored: int = -100) -> Tensor:
    """The share of rightly classified queries of each task, ``[B]``, those with the ignored label left out.

    Args:
        logits: ``[B, n, N]``, or ``[B, n, N, ...]`` for classes of places, such as pixels, which then are what is counted.
        targets: ``[B, n]`` or ``[B, n, ...]``.
        ignored: the label that does not count.

    Example:
        >>> import torch
        >>> from metalearn.metrics import count_right
        >>> logits = torch.tensor([[[2.0, 1.0], [0.0, 1.0]]])  # one task of two queries
        >>> count_right(logits, torch.tensor([[0, 0]]))
        tensor([0.5000], dtype=torch.float64)
    """
    kept = targets != ignored
    right = (logits.argmax(2) == targets) & kept
    return right.flatten(1).sum(1).double() / kept.flatten(1).sum(1)


class EpisodeAccuracy(EpisodeMean):
    """The share of queries that are classified rightly, per task.

    Example:
        >>> import torch
        >>> from metalearn import EpisodeAccuracy
        >>> metric = EpisodeAccuracy()
        >>> logits = torch.tensor([[[2.0, 1.0], [0.0, 1.0]]])  # one task of two queries
        >>> metric.update(logits, torch.tensor([[0, 0]]), tasks=torch.tensor([0]))
        >>> metric.compute().mean
        0.5
    """

    higher_is_better = True

    def update(  # type: ignore[override]
        self, logits: Tensor, targets: Tensor, tasks: Tensor, ignored: int = -100
    ) -> None:
        """Add ``B`` tasks: ``logits`` and ``targets`` as for :func:`count_right`, their numbers ``[B]``."""
        super().update(count_right(logits, targets, ignored), tasks)
