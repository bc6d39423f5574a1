"""Whether a user's loss is what the inner loop needs: a differentiable scalar that pairs every output with its own target."""

from __future__ import annotations

import copy
import functools
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from metalearn.errors import ConfigError, DivergenceError, MetalearnError, ShapeError, first_line
from metalearn.inner import Adaptation, ModuleLoss

__all__ = ["check_loss", "name_loss"]


def name_loss(loss: Any) -> str:
    """What a loss is called in messages."""
    if isinstance(loss, ModuleLoss):
        loss = loss.module
    if isinstance(loss, functools.partial):
        return f"partial({name_loss(loss.func)})"
    return type(loss).__name__ if isinstance(loss, nn.Module) else getattr(loss, "__name__", type(loss).__name__)


def check_loss(adaptation: Adaptation, outputs: Tensor, targets: Tensor, classes: bool, order: int) -> None:
    """Try the loss on the untrained network's outputs ``[n, ...]``.

    Args:
        adaptation: the inner loop.
        outputs: of one task.
        targets: of one task.
        classes: whether they are class labels.
        order: of the derivatives that it must have.

    Raises:
        ShapeError: it cannot take them, or broadcasts one against the other.
        ConfigError: it gives no scalar, has no such derivative, or would be trained without being a module.
        DivergenceError: it is not finite where outputs and targets are.
    """
    name = f"the loss {name_loss(adaptation.loss)}"
    shapes = f"outputs of shape {list(outputs.shape)} and targets of shape {list(targets.shape)}"
    device = outputs.device
    with (
        warnings.catch_warnings(),
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        torch.enable_grad(),
    ):
        warnings.simplefilter("ignore")  # torch warns of shapes that are looked at below
        leaf = outputs.detach().clone().requires_grad_()
        value = _try(name, shapes, adaptation, leaf, targets)
        _check_scalar(name, value)
        _check_trainables(name, adaptation, outputs.detach(), targets)
        finite = bool(outputs.isfinite().all()) and bool(targets.isfinite().all())
        if finite and not bool(value.isfinite()):
            raise DivergenceError(
                f"{name} is {float(value.detach()):g} for the finite {shapes} of a task before any adaptation; check what it "
                "divides by, or takes the logarithm of"
            )
        if outputs.shape != targets.shape and not classes:
            _check_pairs(name, shapes, adaptation, leaf, targets)
        _check_derivatives(name, value, leaf, order)
        if adaptation.method.chunk is not None and len(outputs) > 1:
            _check_mean(name, adaptation, leaf.detach(), targets)


def _try(name: str, shapes: str, adaptation: Adaptation, outputs: Tensor, targets: Tensor) -> Any:
    """What the loss gives, or a line that says why it gives nothing."""
    try:
        return _call(adaptation, outputs, targets)
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        if isinstance(error, MetalearnError):
            raise
        reason = first_line(error)
        raise ShapeError(
            f"{name} cannot take {shapes} ({_types(outputs, targets)}): {reason}; {_remedy(error, targets)}"
        ) from error


def _remedy(error: Exception, targets: Tensor) -> str:
    if isinstance(error, TypeError) and "positional argument" in str(error):
        return (
            "a loss is called with outputs and targets alone, so whatever else it needs must come from the network, as a part of "
            "its outputs, or with the targets"
        )
    floats = "" if targets.is_floating_point() else " to floats"
    return f"change the targets{floats}, the number of the backbone's outputs, or the loss"


def _call(adaptation: Adaptation, outputs: Tensor, targets: Tensor) -> Any:
    params = {key: value.detach() for key, value in adaptation.outer().items()}
    return adaptation.task_loss(params, outputs, targets)


def _check_scalar(name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise ConfigError(f"{name} gives a {type(value).__name__}, but it must give a scalar tensor; return that alone")
    if value.ndim > 0:
        raise ConfigError(
            f"{name} gives a tensor of shape {list(value.shape)}, but it must give a scalar; use reduction='mean', or .mean()"
        )
    if not value.requires_grad:
        raise ConfigError(
            f"{name} has no gradient by the outputs, so nothing could be learned from it; leave out argmax, rounding, detach and "
            "conversions to numbers"
        )


def _check_trainables(name: str, adaptation: Adaptation, outputs: Tensor, targets: Tensor) -> None:
    """Raise if the loss depends on trainable tensors that are not the module's, or writes its buffers."""
    if _call(adaptation, outputs, targets).requires_grad:
        raise ConfigError(
            f"{name} depends on trainable tensors of its own, but is no torch.nn.Module that registers them, so they would not "
            "be trained; pass it as such a module, or detach them"
        )
    if isinstance(adaptation.loss, ModuleLoss):
        module = copy.deepcopy(adaptation.loss.module).train()
        before = {key: value.clone() for key, value in module.named_buffers()}
        adaptation.loss.over(module).module(outputs, targets)
        for key, value in module.named_buffers():
            if not torch.equal(value, before[key]):
                raise ConfigError(
                    f"{name} writes its buffer {key} when it is called, but it is called many times a step and for every task; "
                    "write it in a hook such as on_train_batch_end, or keep it fixed"
                )


def _check_pairs(name: str, shapes: str, adaptation: Adaptation, leaf: Tensor, targets: Tensor) -> None:
    """Raise if shapes are broadcast over examples.

    That shows in two ways: the target of one example changes the gradient by the outputs of another, and it makes no difference
    whose outputs they are. A masked mean or a Dice loss has the first of these alone.
    """
    other = next((row for row in range(1, len(targets)) if not torch.equal(targets[row], targets[0])), None)
    if other is None:
        return
    changed = targets.clone()
    changed[0] = targets[other]
    noise = torch.randn(leaf.shape, generator=torch.Generator().manual_seed(0)).to(leaf) * 1e-2
    point = (leaf.detach() + noise).requires_grad_()
    values, rows = [], []
    for y in (targets, changed):
        values.append(_call(adaptation, point, y))
        (grad,) = torch.autograd.grad(values[-1], point, materialize_grads=True)
        rows.append(grad[1:])
    order = list(range(len(targets)))
    order[0], order[other] = other, 0
    exchanged = _call(adaptation, point.detach()[order], targets)
    if not torch.allclose(rows[0], rows[1], rtol=1e-4, atol=1e-7) and torch.allclose(
        exchanged, values[0].detach(), rtol=1e-5, atol=1e-7
    ):
        raise ShapeError(
            f"{name} compares every output with the targets of other examples for {shapes}, as where shapes are broadcast; give "
            f"targets the outputs' shape {list(leaf.shape)}, or outputs that of the targets"
        )


def _check_derivatives(name: str, value: Tensor, leaf: Tensor, order: int) -> None:
    (grad,) = torch.autograd.grad(value, leaf, create_graph=order > 1, materialize_grads=True)
    if order > 1 and grad.requires_grad:
        try:
            torch.autograd.grad(grad.sum(), leaf, materialize_grads=True)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0][:160].rstrip(".")
            raise ConfigError(
                f"{name} has no second derivative ({reason}), which the exact meta-gradient needs; use first_order=True, or "
                "another loss"
            ) from error


def _check_mean(name: str, adaptation: Adaptation, outputs: Tensor, targets: Tensor) -> None:
    """Raise if the loss is no mean over examples, as the gradients of chunks are averaged."""
    cut = (len(outputs) + 1) // 2
    share = cut / len(outputs)
    parts = share * _call(adaptation, outputs[:cut], targets[:cut])
    parts = parts + (1 - share) * _call(adaptation, outputs[cut:], targets[cut:])
    if not torch.allclose(parts, _call(adaptation, outputs, targets), rtol=1e-3, atol=1e-6):
        raise ConfigError(
            f"support_chunk is {adaptation.method.chunk}, but {name} is no mean over examples, so the gradients of chunks do not "
            "add up to that of the support set; leave support_chunk out, or use reduction='mean' without class weights"
        )


def _types(outputs: Tensor, targets: Tensor) -> str:
    return " and ".join(str(tensor.dtype).removeprefix("torch.") for tensor in (outputs, targets))
