"""Batch normalisation by a function: a layer that calls ``F.batch_norm`` itself obeys the policy too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.inner.ambient import Change, current
from metalearn.inner.kernels.routing import KERNEL_ANSWERS, Answer, Routing
from metalearn.inner.norm.policies import Policy
from metalearn.inner.norm.task_norm import normalise_task

__all__ = ["ForwardPass"]


class _Call(NamedTuple):
    """The arguments of a call, as a policy takes them."""

    x: Tensor
    running_mean: Tensor | None
    running_var: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    training: bool
    momentum: float
    eps: float
    name: None = None


def _read_functional(
    input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None,
    bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> _Call:  # fmt: skip
    """The arguments of ``torch.nn.functional.batch_norm``."""
    return _Call(input, running_mean, running_var, weight, bias, training, momentum, eps)


def _read_torch(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor | None, running_var: Tensor | None,
    training: bool, momentum: float, eps: float, cudnn_enabled: bool,
) -> _Call:  # fmt: skip
    """The arguments of ``torch.batch_norm``."""
    return _Call(input, running_mean, running_var, weight, bias, training, momentum, eps)


def _answer(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Normalise by the policy in force, and write no statistics.

    A call with ``training=False`` in a network that trains is a normalisation that is frozen on purpose: it stays as it is.
    """
    call = (_read_functional if func is F.batch_norm else _read_torch)(*args, **kwargs)
    ambient = current()
    if ambient.leaves_frozen and not call.training:
        return func(*args, **kwargs)
    return normalise_task(call.x, call, ambient)


ANSWERS: dict[Callable[..., Any], Answer] = {**KERNEL_ANSWERS, F.batch_norm: _answer, torch.batch_norm: _answer}


class ForwardPass:
    """Within this context a network normalises by a policy, and computes by our operators where they are in use.

    Within activation checkpointing everything is kept. Its second forward pass would come when the weights that were handed in
    are gone, and be that of other weights, silently.

    Args:
        policy: of the learner.
        leaves_frozen: whether a call of ``F.batch_norm`` with ``training=False`` means what it says.
        checkpoints: whether there is activation checkpointing.
    """

    def __init__(self, policy: Policy, leaves_frozen: bool, checkpoints: bool) -> None:
        self._change = Change(policy=policy, leaves_frozen=leaves_frozen, keeps_everything=checkpoints)
        self._routing = Routing(ANSWERS, checkpoints)

    def __enter__(self) -> None:
        self._change.__enter__()
        self._routing.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._routing.__exit__(*error)
        self._change.__exit__(*error)
