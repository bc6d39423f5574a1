"""Loss and accuracy of a linear model over the examples of a validation or a test."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric

__all__ = ["LinearScores"]

NAMES = ("loss", "acc")


class LinearScores(nn.Module):
    """The mean cross-entropy and the share of right answers, each by stage (``"val"`` or ``"test"``)."""

    def __init__(self) -> None:
        super().__init__()
        self.means = nn.ModuleDict({f"{stage}_{name}": MeanMetric() for stage in ("val", "test") for name in NAMES})

    def update(self, stage: str, logits: Tensor, labels: Tensor) -> None:
        """Add examples: ``logits`` ``[n, classes]``, ``labels`` ``[n]``."""
        self._mean(stage, "loss").update(F.cross_entropy(logits, labels), len(labels))
        self._mean(stage, "acc").update((logits.argmax(-1) == labels).float().mean(), len(labels))

    def finish(self, stage: str) -> dict[str, float]:
        """Return the means over all ranks, and forget the examples."""
        values = {name: float(self._mean(stage, name).compute()) for name in NAMES}
        for name in NAMES:
            self._mean(stage, name).reset()
        return values

    def _mean(self, stage: str, name: str) -> Any:
        return self.means[f"{stage}_{name}"]
