"""Which metrics the tasks of a test have beside the loss, by what their targets and outputs are."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from metalearn.inner.bands import BandLoss
from metalearn.inner.losses import HALVES
from metalearn.inner.task_types import gives_probabilities, presume_task_type
from metalearn.metrics import measure_classes, measure_labels, measure_values
from metalearn.modules.episodic.targets import Reading

__all__ = ["KINDS", "MEASURES", "Kind", "find_kind", "find_threshold", "measure", "predict_values", "read_outputs"]

Kind = Literal["none", "classes", "labels", "values", "band"]
KINDS: tuple[Kind, ...] = get_args(Kind)
MEASURES: dict[Kind, tuple[str, ...]] = {
    "none": (),
    "classes": ("macro_f1",),
    "labels": ("exact_match", "f1_micro", "f1_macro", "average_precision"),
    "values": ("rmse", "mae"),
    "band": ("rmse", "mae", "coverage"),
}
"""The names of the metrics, one number a task."""


def find_kind(reading: Reading, loss: Any, is_sure: bool, outputs: Tensor, targets: Tensor) -> Kind:
    """Which metrics can be taken of tasks.

    Args:
        reading: what they are.
        loss: says what the outputs mean.
        is_sure: whether it is known what the outputs mean.
        outputs: ``[B, n, ...]``.
        targets: ``[B, n, ...]``.
    """
    if reading.classes:
        return "classes"
    if not is_sure:
        return "none"
    if isinstance(loss, BandLoss):
        return "band" if loss.share > 0 else "values"
    if reading.task == "classification" or outputs.shape != targets.shape:
        return "none"
    if reading.task == "multilabel":
        return "labels" if outputs.ndim > 2 else "none"
    return "values"


def measure(kind: Kind, loss: Any, outputs: Tensor, targets: Tensor, ignored: int) -> dict[str, Tensor]:
    """The metrics of each task, ``[B]``, of outputs ``[B, n, ...]`` and targets ``[B, n, ...]``."""
    if kind == "none":
        return {}
    if kind == "classes":
        return measure_classes(outputs, targets, ignored)
    outputs = outputs.float() if outputs.dtype in HALVES else outputs
    if kind == "labels":
        return measure_labels(outputs, targets, find_threshold(loss))
    points = predict_values(loss, outputs)
    targets = targets.unsqueeze(-1) if targets.ndim < points.ndim else targets
    return measure_values(points, targets, loss.band(outputs) if kind == "band" else None)


def find_threshold(loss: Any) -> float:
    """The score above which a label is predicted: one half for probabilities, 0 for logits."""
    return 0.5 if gives_probabilities(loss) else 0.0


def predict_values(loss: Any, outputs: Tensor) -> Tensor:
    """What a network predicts by its outputs ``[..., w]``: values in the units of the targets."""
    if isinstance(loss, BandLoss):
        return loss.point(outputs)
    if presume_task_type(loss) == "multilabel" and not gives_probabilities(loss):
        return torch.sigmoid(outputs)
    return outputs


def read_outputs(loss: Any, outputs: Tensor) -> dict[str, Tensor]:
    """What a network says by its outputs ``[..., w]``, by the names of columns: predictions, bands, or probabilities."""
    values = predict_values(loss, outputs)
    if isinstance(loss, BandLoss) and loss.share > 0:
        low, high = loss.band(outputs)
        return {"predicted": values, "lower": low, "upper": high}
    return {"p" if presume_task_type(loss) == "multilabel" else "predicted": values}
