"""What one forward pass of the network as it is shows: hooks on saved tensors, frozen normalisation, random numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from metalearn.errors import ConfigError
from metalearn.inner.execution.probe.layers import watching_calls
from metalearn.inner.execution.probe.undrawn import WithoutDropout
from metalearn.inner.learner import Learner
from metalearn.inner.network.structure import Mode
from metalearn.inner.plain_learner import PlainLearner

__all__ = ["draws_random_numbers", "find_frozen", "uses_saved_tensor_hooks"]


def uses_saved_tensor_hooks(learner: Learner, x: Tensor, mode: Mode) -> bool:
    """Whether the network uses hooks on what is saved for the backward pass, as activation checkpointing does.

    Args:
        learner: holds the network.
        x: examples ``[n, ...]`` of a task.
        mode: of its layers.
    """
    plain = PlainLearner(learner)
    refusal = "hooks on saved tensors"
    try:
        with (
            plain.structure.undisturbed(),
            torch.random.fork_rng(),
            plain.running(mode) as running,
            torch.enable_grad(),
            torch.autograd.graph.disable_saved_tensors_hooks(refusal),
        ):
            running.support_logits(running.outer(), x)
    except RuntimeError as error:
        return refusal in str(error)
    return False


def find_frozen(learner: Learner, x: Tensor, undrawn: WithoutDropout) -> bool:
    """Whether the network normalises by ``F.batch_norm`` with ``training=False`` in training too.

    Evaluation alone would not show it.

    Args:
        learner: holds the network.
        x: examples ``[n, ...]`` of a task.
        undrawn: the mode to run it in.

    Raises:
        ConfigError: it does so in one place and not in another.
    """
    plain = PlainLearner(learner)
    frozen_layers: list[str] = []
    flags: list[bool] = []

    def note(layer: nn.Module, *_: Any) -> None:
        """Take the calls since the last hook for those of ``layer``."""
        if not isinstance(layer, _BatchNorm):
            flags.extend(undrawn.training_flags)
        elif False in undrawn.training_flags:
            frozen_layers.append(type(layer).__name__)
        undrawn.training_flags.clear()

    with (
        watching_calls(note, note),
        plain.structure.undisturbed(),
        undrawn,
        plain.running("training") as running,
        torch.no_grad(),
    ):
        running.call(running.outer(), x)
    frozen = bool(frozen_layers) or False in flags
    if frozen and True in flags:
        raise ConfigError(
            f"the backbone {type(learner.backbone).__name__} calls F.batch_norm with training=False in training too, "
            "and elsewhere with batch statistics, so that nothing tells its calls apart in evaluation; use "
            "torch.nn.BatchNorm layers"
        )
    return frozen


def draws_random_numbers(learner: Learner, x: Tensor, mode: Mode) -> bool:
    """Whether the network moves the random generator, as dropout does in training.

    Args:
        learner: holds the network.
        x: examples ``[n, ...]`` of a task.
        mode: of its layers.
    """
    plain = PlainLearner(learner)
    with (
        plain.structure.undisturbed(),
        torch.random.fork_rng([x.device] if x.is_cuda else []),
        plain.running(mode) as running,
        torch.no_grad(),
    ):
        before = torch.get_rng_state()
        running.support_logits(running.outer(), x)
        return not torch.equal(before, torch.get_rng_state())
