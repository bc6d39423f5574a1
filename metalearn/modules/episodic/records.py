"""What the tables and pictures of a test are made of: counts over all queries, gathered from all ranks."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from metalearn.metrics import Calibration
from metalearn.modules.episodic.measures import Kind

__all__ = ["CountRows", "QueryRecords", "count_confusions", "count_labels"]


class CountRows(Metric):
    """Rows of whole numbers of one width, in the order of their first columns after :meth:`compute`.

    Args:
        width: of a row.
    """

    full_state_update = False
    rows: list[Tensor]

    def __init__(self, width: int) -> None:
        super().__init__()
        self._width = width
        self.add_state("rows", [], dist_reduce_fx="cat")
        self.reset()

    def reset(self) -> None:
        """Forget all rows. An empty tensor stays behind, so that a rank without rows can still take part in gathering."""
        super().reset()
        self.rows.append(torch.zeros(0, self._width, dtype=torch.int64, device=self.device))

    def update(self, rows: Tensor) -> None:
        """Add rows ``[r, width]``."""
        self.rows.append(rows)

    def compute(self) -> Tensor:
        """The rows of all ranks, ``[R, width]``."""
        rows = dim_zero_cat(self.rows)
        for column in reversed(range(self._width)):
            rows = rows[rows[:, column].argsort(stable=True)]
        return rows.cpu()


class QueryRecords:
    """What one loader's tasks have answered in a test.

    Attributes:
        confusions: after :meth:`finish`, rows of a task's number, a class of it, the class that some of its queries were taken
            for, and how many; ``[R, 4]``.
        bins: queries, summed confidences and right answers for each bin of confidence; ``[3, bins]``.
        labels: rows of a label's number, and the queries that have it and are predicted to, have it and are not, lack it and are
            predicted to have it, and lack it and are not; ``[R, 5]``. A label may have several rows.
    """

    def __init__(self) -> None:
        self._calibration, self._confusions, self._labels = Calibration(), CountRows(4), CountRows(5)
        self.confusions: Tensor | None = None
        self.bins: Tensor | None = None
        self.labels: Tensor | None = None

    def update(
        self, kind: Kind, outputs: Tensor, targets: Tensor, numbers: Tensor, ignored: int, threshold: float
    ) -> None:
        """Take note of tasks.

        Args:
            kind: which metrics they have.
            outputs: ``[B, n, ...]``.
            targets: ``[B, n, ...]``.
            numbers: of the tasks, ``[B]``.
            ignored: the class that does not count.
            threshold: the score above which a label is predicted.
        """
        if kind == "classes":
            self._calibration.to(outputs.device).update(outputs, targets, ignored)
            self._confusions.to(outputs.device).update(count_confusions(outputs, targets, numbers, ignored))
        if kind == "labels":
            self._labels.to(outputs.device).update(count_labels(outputs, targets, threshold))

    def finish(self, kind: Kind, device: torch.device) -> float | None:
        """Gather from all ranks.

        Returns:
            the expected calibration error of class probabilities.
        """
        with warnings.catch_warnings():  # a rank without tasks takes part in gathering
            warnings.filterwarnings("ignore", message="The ``compute`` method of metric")
            if kind == "labels":
                self.labels = self._labels.to(device).compute()
            if kind != "classes":
                return None
            self.confusions = self._confusions.to(device).compute()
            error = float(self._calibration.to(device).compute())
            self.bins = self._calibration.reduced
        return error


def count_confusions(logits: Tensor, targets: Tensor, numbers: Tensor, ignored: int) -> Tensor:
    """How often queries of a class were taken for a class, as rows of task, class, predicted class and number: ``[r, 4]``.

    Args:
        logits: ``[B, n, N, ...]``.
        targets: ``[B, n, ...]``.
        numbers: of the tasks, ``[B]``.
        ignored: the label that does not count.
    """
    ways = logits.shape[2]
    predicted, wanted = logits.argmax(2).flatten(1), targets.flatten(1)
    rows = torch.arange(len(logits), device=logits.device).unsqueeze(1)
    places = ((rows * ways + wanted) * ways + predicted)[wanted != ignored]
    counts = torch.bincount(places, minlength=len(logits) * ways * ways)
    filled = counts.nonzero().squeeze(1)
    pairs = filled % (ways * ways)
    return torch.stack([numbers[filled // (ways * ways)], pairs // ways, pairs % ways, counts[filled]], 1)


def count_labels(scores: Tensor, targets: Tensor, threshold: float) -> Tensor:
    """For each label how many queries have it or lack it, and are predicted to, as :class:`QueryRecords` says: ``[k, 5]``.

    Args:
        scores: ``[B, n, k]``.
        targets: ``[B, n, k]`` of 0 and 1.
        threshold: a label is predicted where its score is above it.
    """
    chosen, wanted = (scores.flatten(2) > threshold).flatten(0, 1), (targets.flatten(2) > 0.5).flatten(0, 1)
    counts = [(wanted & chosen), (wanted & ~chosen), (~wanted & chosen), (~wanted & ~chosen)]
    columns = [count.sum(0) for count in counts]
    return torch.stack([torch.arange(len(columns[0]), device=scores.device), *columns], 1)
