"""What the targets of tasks are, class labels or values, and whether network, loss and targets fit: found out from a batch."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.episode import Batch
from metalearn.errors import MetalearnError, ShapeError
from metalearn.inner import Adaptation, ModuleLoss
from metalearn.modules.episodic.loss_checks import check_loss

__all__ = ["Reading", "find_ignored_label", "presume_classes", "read_batch"]

NOT_TAKEN = (RuntimeError, ValueError, IndexError, AssertionError, TypeError)
"""What torch and networks raise for inputs that they cannot take."""


class Reading(NamedTuple):
    """What a batch of one kind of shapes is.

    Attributes:
        outputs: the classes that the network can name, or the size of its outputs' last axis.
        classes: whether targets are class labels, of examples ``[n]`` or of places in them ``[n, ...]``.
        x_dtype: what inputs are brought to; ``None`` for no other.
        y_dtype: what targets are brought to; ``None`` for no other.
    """

    outputs: int
    classes: bool
    x_dtype: torch.dtype | None
    y_dtype: torch.dtype | None

    def convert(self, batch: Batch) -> Batch:
        """The batch in the types that network and loss take."""
        x = batch.x if self.x_dtype is None else batch.x.to(self.x_dtype)
        return Batch(x, batch.y if self.y_dtype is None else batch.y.to(self.y_dtype))


def presume_classes(loss: Any) -> bool:
    """Whether targets are class labels as far as the loss tells, before any of them is seen."""
    inner = loss.func if isinstance(loss, functools.partial) else loss
    return (
        inner in ("cross_entropy", F.cross_entropy, F.nll_loss, F.multi_margin_loss)
        if not isinstance(inner, nn.Module)
        else isinstance(inner, (nn.CrossEntropyLoss, nn.NLLLoss, nn.MultiMarginLoss))
    )


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
    adaptation: Adaptation, forward: Callable[[Tensor], Any], batch: Batch, role: str, named: str | None, order: int
) -> Reading:
    """Find out what one task's examples are, by a forward pass and a call of the loss.

    Args:
        adaptation: the inner loop; its loss is tried.
        forward: the network's outputs of inputs ``[n, ...]``.
        batch: ``x`` ``[n, ...]`` and ``y`` ``[n, ...]``.
        role: for messages.
        named: the loss, if it was given by its name.
        order: of the derivatives that the loss must have: 2 for an exact meta-gradient.

    Raises:
        ShapeError: the network cannot take the inputs, or outputs and targets do not fit together.
        ConfigError: the loss is no differentiable scalar of outputs and targets.
    """
    x, y = batch
    outputs, x_dtype = _try_network(adaptation, forward, x, role)
    labels = not y.is_floating_point() and not y.is_complex()
    per_place = outputs.ndim == y.ndim + 1 and outputs.shape[2:] == y.shape[1:]
    classes = labels and per_place and named != "mse" and (outputs.shape[1] > 1 or named is not None)
    if named is not None:
        _check_named(named, outputs, y, classes, role)
    y_dtype = None
    if labels and (classes or y.dtype != torch.bool):
        y_dtype = torch.int64
    elif y.is_floating_point() and outputs.dtype in (torch.float32, torch.float64):
        y_dtype = outputs.dtype
    targets = y if y_dtype is None else y.to(y_dtype)
    if classes:
        targets = targets.clamp(0, outputs.shape[1] - 1)  # whether labels are in range is asked of every batch
    if named is None:
        check_loss(adaptation, outputs, targets, classes, order)
    return Reading(
        outputs.shape[1] if classes else outputs.shape[-1],
        classes,
        x_dtype,
        None if y_dtype == y.dtype else y_dtype,
    )


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
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")
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


def _check_named(named: str, outputs: Tensor, y: Tensor, classes: bool, role: str) -> None:
    if classes:
        return
    if named == "mse" or y.is_floating_point():
        if outputs.shape == y.shape:
            rows = y.float().sum(1) if outputs.ndim > 1 else y
            if named == "mse" or (bool((y >= 0).all()) and bool((rows - 1).abs().max() < 1e-3)):
                return
            raise ShapeError(
                f"{role}: loss is 'cross_entropy', but y of shape {list(y.shape)} holds floats that are no class "
                "probabilities (at least 0, with sum 1); use loss='mse' for regression, a multi-label loss, or y.long()"
            )
        expected = str(list(outputs.shape)) if named == "mse" else "[examples] of integer classes, or probabilities"
    else:
        expected = "[examples, ...] where the backbone gives [examples, ways, ...]"
    raise ShapeError(
        f"the backbone gives outputs of shape {list(outputs.shape)} for targets of shape {list(y.shape)} "
        f"({_short(y.dtype)}), but the loss {named!r} needs targets of shape {expected}; change the "
        "backbone's number of outputs, the targets' shape, or the loss"
    )


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
