"""What the targets of tasks are, class labels or values, and whether network, loss and targets fit: found out from a batch."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from metalearn.episode import Batch
from metalearn.errors import MetalearnError, ShapeError, first_line
from metalearn.inner import Adaptation, BandLoss, ModuleLoss
from metalearn.inner.task_types import TaskType
from metalearn.modules.episodic.loss_checks import check_loss, name_loss
from metalearn.modules.episodic.task_kinds import (
    check_band,
    check_named,
    check_targets,
    find_task_type,
    may_be_classes,
    note_task_type,
)

__all__ = ["Reading", "find_ignored_label", "read_batch"]

NOT_TAKEN = (RuntimeError, ValueError, IndexError, AssertionError, TypeError)
"""What torch and networks raise for inputs that they cannot take."""


class Reading(NamedTuple):
    """What a batch of one kind of shapes is.

    Attributes:
        outputs: the classes that the network can name, or the size of its outputs' last axis.
        classes: whether targets are class labels, of examples ``[n]`` or of places in them ``[n, ...]``.
        x_dtype: what inputs are brought to; ``None`` for no other.
        y_dtype: what targets are brought to; ``None`` for no other.
        task: the kind of task.
        note: how that was found out; empty where the user has said it.
    """

    outputs: int
    classes: bool
    x_dtype: torch.dtype | None
    y_dtype: torch.dtype | None
    task: TaskType
    note: str

    def convert(self, batch: Batch) -> Batch:
        """The batch in the types that network and loss take."""
        x = batch.x if self.x_dtype is None else batch.x.to(self.x_dtype)
        return Batch(x, batch.y if self.y_dtype is None else batch.y.to(self.y_dtype))


def find_ignored_label(loss: Any) -> int:
    """The label that a loss leaves out: its ``ignore_index``, or torch's -100."""
    if isinstance(loss, ModuleLoss):
        loss = loss.module
    label = (
        loss.keywords.get("ignore_index")
        if isinstance(loss, functools.partial)
        else getattr(loss, "ignore_index", None)
    )
    return label if isinstance(label, int) else -100


def read_batch(
    adaptation: Adaptation,
    forward: Callable[[Tensor], Any],
    batch: Batch,
    role: str,
    named: str | None,
    order: int,
    asked: TaskType | None = None,
) -> Reading:
    """Find out what one task's examples are, by a forward pass and a call of the loss.

    Args:
        adaptation: the inner loop; its loss is tried.
        forward: the network's outputs of inputs ``[n, ...]``.
        batch: ``x`` ``[n, ...]`` and ``y`` ``[n, ...]``.
        role: for messages.
        named: the loss, if it was given by its name.
        order: of the derivatives that the loss must have: 2 for an exact meta-gradient.
        asked: the kind of task as the user says it.

    Raises:
        ShapeError: the network cannot take the inputs, or outputs and targets do not fit together.
        ConfigError: the loss is no differentiable scalar of outputs and targets.
    """
    x, y = batch
    outputs, x_dtype = _try_network(adaptation, forward, x, role)
    labels = not y.is_floating_point() and not y.is_complex()
    per_place = outputs.ndim == y.ndim + 1 and outputs.shape[2:] == y.shape[1:]
    loss, name = adaptation.loss, name_loss(adaptation.loss) if named is None else repr(named)
    classes = labels and per_place and may_be_classes(loss, named, asked)
    classes = classes and (outputs.shape[1] > 1 or named is not None)
    check_targets(asked, classes, outputs, y, role)
    if isinstance(loss, BandLoss):
        check_band(loss, name, outputs, y)
    elif named is not None:
        check_named(named, outputs, y, classes, role)
    y_dtype = _choose_type(outputs, y, classes)
    targets = y if y_dtype is None else y.to(y_dtype)
    if classes:
        targets = targets.clamp(0, outputs.shape[1] - 1)  # whether labels are in range is asked of every batch
    if named is None:
        check_loss(adaptation, outputs, targets, classes, order)
    task = find_task_type(loss, asked, classes, outputs, y)
    return Reading(
        outputs.shape[1] if classes else outputs.shape[-1],
        classes,
        x_dtype,
        None if y_dtype == y.dtype else y_dtype,
        task,
        note_task_type(task, loss, name, y) if asked is None else "",
    )


def _choose_type(outputs: Tensor, y: Tensor, classes: bool) -> torch.dtype | None:
    """What targets are brought to; ``None`` where they stay as they are."""
    if y.is_floating_point():
        return outputs.dtype if outputs.dtype in (torch.float32, torch.float64) else None
    return None if y.is_complex() or (y.dtype == torch.bool and not classes) else torch.int64


def _try_network(
    adaptation: Adaptation, forward: Callable[[Tensor], Any], x: Tensor, role: str
) -> tuple[Tensor, torch.dtype | None]:
    """The outputs, and the type that inputs had to be brought to."""
    network = adaptation.learner.backbone
    name = type(network).__name__
    dtypes = {value.dtype for value in network.parameters()}
    own = next(iter(dtypes)) if len(dtypes) == 1 else None
    doubled = torch.cat([x, x]) if x.ndim == 1 else x  # a number each: one axis must not be taken for an example's
    casts: torch.dtype | None = None
    try:
        try:
            outputs = forward(doubled)
        except NOT_TAKEN as error:
            if isinstance(error, (MetalearnError, torch.OutOfMemoryError)):
                raise
            if not x.is_floating_point() or own is None or x.dtype == own:
                raise
            outputs, casts = forward(doubled.to(own)), own
    except NOT_TAKEN as error:
        if isinstance(error, (MetalearnError, torch.OutOfMemoryError)):
            raise
        reason = first_line(error)
        raise ShapeError(
            f"{role}: the backbone {name} cannot take x of shape {list(x.shape)} ({_short(x.dtype)}, {x.device.type}) "
            f"({reason}); {_remedy(x, network)}"
        ) from error
    if outputs.ndim == 0 or len(outputs) != len(doubled):
        raise ShapeError(
            f"{role}: the backbone {name} gives outputs of shape {list(outputs.shape)} for x of shape {list(doubled.shape)}, "
            "but both must start with the number of examples; let its forward keep the first axis, and check that x has one"
        )
    if not outputs.is_floating_point():
        raise ShapeError(
            f"the backbone {name} gives outputs of {_short(outputs.dtype)}, but gradients need floating-point ones; leave out "
            "what rounds or compares at its end"
        )
    return outputs[: len(x)], casts


def _remedy(x: Tensor, network: nn.Module) -> str:
    device = next(network.parameters()).device
    if x.device != device:
        return f"move it to the model: x.to('{device}')"
    if x.dtype == torch.uint8:
        return "bytes of images are x.float() / 255"
    if x.is_complex():
        return "split it into real and imaginary parts with torch.view_as_real"
    if not x.is_floating_point():
        return "integers are for networks that begin with an embedding; for others, x.float()"
    if x.ndim == 1:
        return (
            "a number each needs a network that takes [examples]; else x.unsqueeze(-1), and a task axis by unsqueeze(0)"
        )
    if any(isinstance(layer, nn.Embedding) for layer in network.modules()):
        return "an embedding takes integers: x.long()"
    return "build it for these inputs (in_channels, image_size, inputs)"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
