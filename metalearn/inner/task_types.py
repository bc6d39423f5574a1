"""What kind of task a loss is for: classes, several labels an example, or values."""

from __future__ import annotations

import functools
from typing import Any, Literal, get_args

import torch.nn.functional as F
from torch import nn

from metalearn.checks import check_choice
from metalearn.errors import ConfigError
from metalearn.inner.bands import BandLoss
from metalearn.inner.losses import ModuleLoss
from metalearn.inner.named_losses import NAMED

__all__ = ["TaskType", "check_task_type", "gives_probabilities", "presume_task_type"]

TaskType = Literal["classification", "multilabel", "regression"]

FUNCTIONS: dict[TaskType, tuple[Any, ...]] = {
    "classification": (F.cross_entropy, F.nll_loss, F.multi_margin_loss),
    "multilabel": (
        NAMED["binary_cross_entropy"], F.binary_cross_entropy_with_logits, F.binary_cross_entropy,
        F.multilabel_soft_margin_loss,
    ),
    "regression": (NAMED["mse"], NAMED["l1"], NAMED["huber"], F.mse_loss, F.l1_loss, F.huber_loss, F.smooth_l1_loss),
}  # fmt: skip
CLASSES: dict[TaskType, tuple[type, ...]] = {
    "classification": (nn.CrossEntropyLoss, nn.NLLLoss, nn.MultiMarginLoss),
    "multilabel": (nn.BCEWithLogitsLoss, nn.BCELoss, nn.MultiLabelSoftMarginLoss),
    "regression": (nn.MSELoss, nn.L1Loss, nn.HuberLoss, nn.SmoothL1Loss, BandLoss),
}
REMEDIES: dict[TaskType, str] = {
    "classification": "cross_entropy",
    "multilabel": "binary_cross_entropy",
    "regression": "mse",
}


def presume_task_type(loss: Any) -> TaskType | None:
    """The kind of task that a loss is for, before any target is seen; ``None`` for a function of a user's own."""
    inner = _unwrap(loss)
    for task in get_args(TaskType):
        if isinstance(inner, CLASSES[task]) or any(inner is function for function in FUNCTIONS[task]):
            return task
    return None


def gives_probabilities(loss: Any) -> bool:
    """Whether the outputs that a loss takes are probabilities already, and no logits."""
    inner = _unwrap(loss)
    return inner is F.binary_cross_entropy or isinstance(inner, nn.BCELoss)


def check_task_type(task: TaskType | None, loss: Any, name: str) -> None:
    """Raise unless a loss can be that of such tasks.

    Args:
        task: what the user says; ``None`` for nothing.
        loss: the loss.
        name: what messages call it.

    Raises:
        ConfigError: there is no such kind of task, or the loss is for another.
    """
    if task is None:
        return
    check_choice("task", task, get_args(TaskType))
    meant = presume_task_type(loss)
    # values between 0 and 1, such as pixels, are a regression by the cross-entropy
    if meant in (None, task) or (task, meant) == ("regression", "multilabel"):
        return
    raise ConfigError(
        f"task is {task!r}, but the loss {name} is for {meant}; use loss={REMEDIES[task]!r}, or task={meant!r}"
    )


def _unwrap(loss: Any) -> Any:
    if isinstance(loss, ModuleLoss):
        loss = loss.module
    return loss.func if isinstance(loss, functools.partial) else loss
