"""Whether targets are what the kind of task and the loss say: class labels, several labels an example, or values."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from metalearn.errors import ShapeError
from metalearn.inner.bands import BandLoss, GaussianNLL
from metalearn.inner.task_types import TaskType, presume_task_type

__all__ = ["check_band", "check_named", "check_targets", "find_task_type", "may_be_classes", "note_task_type"]


def may_be_classes(loss: Any, named: str | None, asked: TaskType | None) -> bool:
    """Whether whole numbers can be class labels, as far as the loss and the user say."""
    if named is not None and named != "cross_entropy":
        return False
    return asked in (None, "classification") and presume_task_type(loss) in (None, "classification")


def find_task_type(loss: Any, asked: TaskType | None, classes: bool, outputs: Tensor, targets: Tensor) -> TaskType:
    """The kind of task: what the user says, else what the targets are and the loss is for."""
    if classes:
        return "classification"
    if asked is not None:
        return asked
    several = str(targets.dtype) == "torch.bool" and targets.shape == outputs.shape
    return presume_task_type(loss) or ("multilabel" if several else "regression")


def note_task_type(task: TaskType, loss: Any, name: str, targets: Tensor) -> str:
    """What is said of a kind of task that was inferred."""
    shape = "[" + ", ".join(["examples", *map(str, targets.shape[1:])]) + "]"
    text = f"task type {task!r}, by targets {shape} of {_short(targets)} and the loss {name}"
    if presume_task_type(loss) is None and task != "classification":
        text += f"; say task={task!r} for its metrics"
    return text


def check_targets(asked: TaskType | None, classes: bool, outputs: Tensor, targets: Tensor, role: str) -> None:
    """Raise unless the targets are what the user says.

    Raises:
        ShapeError: they are not.
    """
    begin = f"{role}: task is {asked!r}, but the targets are {_short(targets)} of shape {list(targets.shape)}"
    if asked == "classification" and not classes and not _hold_probabilities(outputs, targets):
        raise ShapeError(
            f"{begin} for outputs of shape {list(outputs.shape)}; class labels are whole numbers [examples], such as y.long(), "
            "and values have task='regression'"
        )
    if asked == "multilabel" and targets.shape != outputs.shape:
        raise ShapeError(
            f"{begin}, and each needs a 0 or 1 for every output, {list(outputs.shape)}; change the backbone's number of "
            "outputs, or the targets"
        )
    if asked == "multilabel" and not bool(((targets == 0) | (targets == 1)).all()):
        raise ShapeError(f"{begin} with values other than 0 and 1; use task='regression' for values")


def check_named(named: str, outputs: Tensor, targets: Tensor, classes: bool, role: str) -> None:
    """Raise unless outputs and targets are of the shapes that a loss with a name takes.

    Raises:
        ShapeError: they are not.
    """
    if classes:
        return
    if named != "cross_entropy":
        if outputs.shape != targets.shape:
            raise _unfit(named, outputs, targets, f"of shape {list(outputs.shape)}")
        if named == "binary_cross_entropy" and not bool(((targets >= 0) & (targets <= 1)).all()):
            raise ShapeError(
                f"{role}: loss is 'binary_cross_entropy', but y holds values from {float(targets.min()):g} to "
                f"{float(targets.max()):g}, and each must be 0, 1 or between; use loss='mse', or scale y"
            )
    elif not targets.is_floating_point():
        raise _unfit(named, outputs, targets, "of shape [examples, ...] where the backbone gives [examples, ways, ...]")
    elif outputs.shape != targets.shape:
        raise _unfit(named, outputs, targets, "of shape [examples] of integer classes, or probabilities")
    elif not _hold_probabilities(outputs, targets):
        raise ShapeError(
            f"{role}: loss is 'cross_entropy', but y of shape {list(targets.shape)} holds floats that are no class "
            "probabilities (at least 0, with sum 1); use loss='mse' for regression, a multi-label loss, or y.long()"
        )


def check_band(loss: BandLoss, name: str, outputs: Tensor, targets: Tensor) -> None:
    """Raise unless there are as many outputs as the loss takes for the targets.

    Raises:
        ShapeError: there are not.
    """
    shape = targets.shape if targets.ndim > 1 else (*targets.shape, 1)
    expected = (*shape[:-1], loss.width * shape[-1])
    if tuple(outputs.shape) != expected:
        parts = "a mean and a variance" if isinstance(loss, GaussianNLL) else f"{loss.width} outputs"
        raise ShapeError(
            f"the backbone gives outputs of shape {list(outputs.shape)} for targets of shape {list(targets.shape)}, but the "
            f"loss {name} needs {parts} for each target, {list(expected)}; give the backbone {expected[-1]} outputs"
        )


def _hold_probabilities(outputs: Tensor, targets: Tensor) -> bool:
    if not targets.is_floating_point() or outputs.shape != targets.shape:
        return False
    rows = targets.float().sum(1) if outputs.ndim > 1 else targets
    return bool((targets >= 0).all()) and bool((rows - 1).abs().max() < 1e-3)


def _unfit(named: str, outputs: Tensor, targets: Tensor, expected: str) -> ShapeError:
    return ShapeError(
        f"the backbone gives outputs of shape {list(outputs.shape)} for targets of shape {list(targets.shape)} "
        f"({_short(targets)}), but the loss {named!r} needs targets {expected}; change the "
        "backbone's number of outputs, the targets' shape, or the loss"
    )


def _short(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
