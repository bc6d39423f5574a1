"""Few-shot metrics: one number a task, its mean over all tasks and ranks, and the interval of that mean."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from metalearn.intervals import Interval, interval

__all__ = [
    "EpisodeAccuracy",
    "EpisodeMean",
    "Interval",
    "count_right",
    "interval",
]

BINS = 15


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


class Calibration(Metric):
    """How far confidences are from the shares of right answers, over all queries of all tasks together (Guo et al. 2017).

    A query's confidence is the largest of its class probabilities. It falls into one of 15 bins of equal width. The expected
    calibration error is the mean over queries of ``|share that is right - mean confidence|`` of their bin.

    Example:
        >>> import torch
        >>> from metalearn.metrics import Calibration
        >>> metric = Calibration()
        >>> metric.update(torch.zeros(1, 4, 2), torch.tensor([[0, 0, 0, 1]]))  # sure by half, and right in 3 of 4
        >>> metric.compute()
        tensor(0.2500, dtype=torch.float64)
    """

    full_state_update = False
    higher_is_better: bool | None = False
    bins: Tensor
    reduced: Tensor | None
    """After :meth:`compute`: queries, summed confidences and right answers of each bin, ``[3, 15]``, of all ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.reduced = None
        self.add_state("bins", torch.zeros(3, BINS, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, targets: Tensor, ignored: int = -100) -> None:
        """Add ``B`` tasks: ``logits`` and ``targets`` as for :func:`count_right`."""
        confidence, predicted = logits.float().softmax(2).max(2)
        kept = targets != ignored
        sure, right = confidence[kept].double(), (predicted == targets)[kept].double()
        place = (sure * BINS).long().clamp(max=BINS - 1)
        counts = torch.stack([torch.ones_like(sure), sure, right])
        self.bins += torch.zeros_like(self.bins).index_add(1, place, counts)

    def compute(self) -> Tensor:
        """The expected calibration error, between 0 and 1."""
        self.reduced = self.bins.cpu()
        count, sure, right = self.bins
        return (right - sure).abs().sum() / count.sum()


def measure_classes(logits: Tensor, targets: Tensor, ignored: int = -100) -> dict[str, Tensor]:
    """The macro F1 score of each task, ``[B]``: the mean over the classes that occur among targets or predictions.

    Args:
        logits: as for :func:`count_right`.
        targets: likewise.
        ignored: the label that does not count.

    Example:
        >>> import torch
        >>> from metalearn.metrics import measure_classes
        >>> logits = torch.tensor([[[2.0, 1.0], [0.0, 1.0]]])  # one task of two queries
        >>> measure_classes(logits, torch.tensor([[0, 0]]))["macro_f1"].round(decimals=3)
        tensor([0.3330], dtype=torch.float64)
    """
    tasks, ways = len(logits), logits.shape[2]
    predicted, wanted = logits.argmax(2).flatten(1), targets.flatten(1)
    first = torch.arange(tasks, device=logits.device).unsqueeze(1) * ways
    places = ((first + wanted) * ways + predicted)[wanted != ignored]
    table = torch.bincount(places, minlength=tasks * ways * ways).reshape(tasks, ways, ways).double()
    right, all_of = table.diagonal(dim1=1, dim2=2), table.sum(1) + table.sum(2)
    scores = torch.where(all_of > 0, 2 * right / all_of.clamp(min=1), 0.0)
    return {"macro_f1": scores.sum(1) / (all_of > 0).sum(1)}


def measure_labels(scores: Tensor, targets: Tensor, threshold: float = 0.0) -> dict[str, Tensor]:
    """Of tasks with several labels an example: exact match, micro F1, macro F1 and mean average precision, each ``[B]``.

    Args:
        scores: ``[B, n, k]``; a label is predicted where its score is above the threshold.
        targets: ``[B, n, k]`` of 0 and 1. Labels that no query of a task has are left out of its average precision.
        threshold: 0 for logits.

    Example:
        >>> import torch
        >>> from metalearn.metrics import measure_labels
        >>> scores = torch.tensor([[[2.0, -1.0], [1.0, 3.0]]])  # one task of two queries
        >>> {name: value.item() for name, value in measure_labels(scores, torch.tensor([[[1, 0], [0, 1]]])).items()}
        {'exact_match': 0.5, 'f1_micro': 0.8, 'f1_macro': 0.8333333333333333, 'average_precision': 1.0}
    """
    scores, wanted = scores.flatten(2).double(), targets.flatten(2) > 0.5
    chosen = scores > threshold
    right, all_of = (chosen & wanted).sum(1).double(), (chosen.sum(1) + wanted.sum(1)).double()
    ordered = wanted.gather(1, scores.argsort(1, descending=True)).double()
    ranks = torch.arange(1, scores.shape[1] + 1, device=scores.device, dtype=torch.float64).unsqueeze(-1)
    positive = ordered.sum(1)
    precision = (ordered * ordered.cumsum(1) / ranks).sum(1) / positive.clamp(min=1)
    return {
        "exact_match": (chosen == wanted).all(2).double().mean(1),
        "f1_micro": 2 * right.sum(1) / all_of.sum(1).clamp(min=1),
        "f1_macro": (2 * right / all_of.clamp(min=1)).mean(1),
        "average_precision": precision.sum(1) / (positive > 0).sum(1).clamp(min=1),
    }


def measure_values(points: Tensor, targets: Tensor, band: Tensor | None = None) -> dict[str, Tensor]:
    """Of tasks whose targets are values: root mean squared error, mean absolute error and coverage, each ``[B]``.

    Args:
        points: the predictions ``[B, n, ...]``.
        targets: ``[B, n, ...]``, in the units that errors are in.
        band: the lower and the upper bound ``[2, B, n, ...]``; ``None`` leaves the coverage out.

    Example:
        >>> import torch
        >>> from metalearn.metrics import measure_values
        >>> points, targets = torch.tensor([[[1.0], [2.0]]]), torch.tensor([[[1.0], [4.0]]])
        >>> measure_values(points, targets, torch.stack([points - 1, points + 1]))["coverage"]
        tensor([0.5000], dtype=torch.float64)
    """
    errors = (points.double() - targets.double()).flatten(1)
    measured = {"rmse": errors.square().mean(1).sqrt(), "mae": errors.abs().mean(1)}
    if band is not None:
        inside = (band[0] <= targets) & (targets <= band[1])
        measured["coverage"] = inside.flatten(1).double().mean(1)
    return measured
