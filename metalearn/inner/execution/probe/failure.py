"""Why a network cannot be compared in float64, or cannot be differentiated twice: one clause for the user."""

from __future__ import annotations

import re
from dataclasses import replace

import torch
from torch import Tensor

from metalearn.episode import Episode
from metalearn.errors import ConfigError, first_line
from metalearn.inner.adaptation import Adaptation
from metalearn.inner.execution.probe.layers import note_inputs
from metalearn.inner.execution.probe.undrawn import WithoutDropout
from metalearn.inner.learner import Learner
from metalearn.inner.losses import double_loss
from metalearn.inner.network.structure import Mode
from metalearn.inner.plain_learner import PlainLearner

__all__ = ["check_second_derivative", "explain_failure"]


def explain_failure(adaptation: Adaptation, episode: Episode, error: Exception) -> str:
    """Whether it is the loss or the network that does not run in float64.

    Args:
        adaptation: the inner loop that was to be compared.
        episode: gives the examples.
        error: what was raised.
    """
    (x, y), _ = episode
    outputs = _run_in_own_precision(adaptation.learner.as_given(), x[0])
    if outputs is not None:
        double = replace(adaptation, loss=double_loss(adaptation.loss))
        params = {name: value.double() for name, value in adaptation.outer().items()}
        try:
            with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
                double.task_loss(params, outputs.double(), y[0].double() if y.is_floating_point() else y[0])
        except (RuntimeError, TypeError) as of_loss:
            return (
                f"the loss does not run in float64, so nothing else is proven: {first_line(of_loss)} (a torch.nn.Module whose "
                "tensors are buffers would)"
            )
    return f"the network does not run in float64, so nothing else is proven: {first_line(error)}"


def _run_in_own_precision(learner: Learner, x: Tensor) -> Tensor | None:
    """The network's outputs in the dtype of its own; ``None`` where it does not run."""
    with (
        learner.structure.undisturbed(),
        learner.running("evaluating") as running,
        torch.no_grad(),
        torch.autocast(x.device.type, enabled=False),
    ):
        try:
            support, _ = running.encode(running.outer(), x, x)
            return running.support_logits(running.outer(), support)
        except RuntimeError:
            return None


def check_second_derivative(learner: Learner, x: Tensor, mode: Mode, undrawn: WithoutDropout, error: Exception) -> None:
    """Raise in one line if ``error`` is that of an operator without a second derivative.

    Args:
        learner: holds the network.
        x: examples ``[n, ...]`` of a task.
        mode: of its layers.
        undrawn: the mode to run it in.
        error: what a second-order meta-gradient raised.

    Raises:
        ConfigError: it is.
    """
    match = re.search(r"derivative for (?:aten::|')_?(\w+?)'? is not implemented", str(error))
    if match is None:
        return
    operator = match.group(1).removesuffix("_backward")
    layer = _find_layer_without_second_derivative(learner, x, mode, undrawn)
    raise ConfigError(
        f"{f'layer {layer!r}: ' if layer else ''}torch has no second derivative of {operator}, which the second-order "
        "meta-gradient needs; use first_order=True, or another activation in the backbone"
    ) from error


def _find_layer_without_second_derivative(
    learner: Learner, x: Tensor, mode: Mode, undrawn: WithoutDropout
) -> str | None:
    plain = PlainLearner(learner)
    with (
        note_inputs(learner.backbone) as inputs,
        plain.structure.undisturbed(),
        undrawn,
        plain.running(mode) as running,
        torch.no_grad(),
    ):
        running.support_logits(running.outer(), x)
    for name, layer, value in inputs:
        if any(True for _ in layer.parameters()) or not value.is_floating_point():
            continue
        try:
            leaf = value.clone().requires_grad_()
            (first,) = torch.autograd.grad(layer(leaf * 1.0).square().sum(), leaf, create_graph=True)
            torch.autograd.grad(first.square().sum(), leaf, allow_unused=True)
        except RuntimeError:
            return name
    return None
