"""Whether the support loss can be differentiated twice: of some operations autograd takes the second derivative for 0."""

from __future__ import annotations

import torch
from torch import Tensor

from metalearn.errors import ConfigError
from metalearn.inner.adaptation import Adaptation
from metalearn.inner.ambient import own_kernels
from metalearn.inner.graph import find_once_differentiable
from metalearn.inner.losses import loss_tensors

__all__ = ["check_twice_differentiable"]


def check_twice_differentiable(adaptation: Adaptation, x: Tensor, y: Tensor) -> None:
    """Try the network as it is given, and the loss, on a set of a task.

    Args:
        adaptation: the inner loop.
        x: examples ``[n, ...]``.
        y: their targets.

    Raises:
        ConfigError: between the adapted tensors and the loss is an operation whose backward is ``once_differentiable``.
    """
    learner = adaptation.learner
    moving = learner.moving()
    params = {
        name: value.detach().requires_grad_() if name in moving else value.detach()
        for name, value in learner.outer().items()
    }
    inputs = [params[name] for name in moving if name in params]
    with (
        torch.random.fork_rng([x.device] if x.device.type == "cuda" else []),
        learner.structure.undisturbed(),
        own_kernels(),
        torch.enable_grad(),
        learner.as_given().running("as_it_is") as running,
    ):
        try:
            outputs = running.outputs(params, x)
            loss = adaptation.task_loss({**params, **loss_tensors(adaptation.loss)}, outputs, y)
        except (RuntimeError, ValueError, TypeError):  # it will fail again, where that is explained
            return
    once = find_once_differentiable(loss.grad_fn, inputs)
    if once is not None:
        raise ConfigError(
            f"{once} is used between the adapted tensors and the loss, but its backward is once_differentiable, so that the "
            "second-order meta-gradient would miss a part in silence; use first_order=True where the algorithm has it, or write "
            "that backward with torch's operations, without the decorator"
        )
