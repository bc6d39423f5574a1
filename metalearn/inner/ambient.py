"""What is ambient in the inner loop: set around a computation, and read deep inside of it.

The caller's network stands between who knows these things and who needs them. Its ``forward`` takes examples alone, so that
nothing else can be handed through it as an argument. All of it stands in one frozen value in one context variable:

==========================  =====================================  ========================================================
Field of :class:`Ambient`   Set by                                 Read by
==========================  =====================================  ========================================================
``operators``               who runs the inner loop in a chosen    convolutions and linear layers (``kernels/routing.py``),
                            way (:func:`own_kernels`)              normalisation (``norm/``), and blocks of our backbones by
                                                                   way of it
``twice_differentiable``    :class:`~metalearn.inner.Adaptation`,  attention and weight normalisation, which have a faster
                            around each inner gradient             form without a second derivative (``kernels/``)
``policy``                  a learner, around each forward pass    normalisation
``rows``, ``step``          a learner, around each forward pass    the policies ``"support"`` and ``"per_step"``
``recording``               a training step; switched off where    the policy ``"per_step"``, which keeps statistics of its
                            a pass is computed a second time       own
``leaves_frozen``           a learner, around each forward pass    calls of ``F.batch_norm``
``memory``                  the execution, around the inner steps  :func:`remember`, by which the first block and recorded
                            of some tasks; off for query sets      steps describe a support set once
``keeps_everything``        a learner, around each forward pass    operators, of which nothing may be packed for the
                                                                   backward pass
``answering``               a comparison of ways of running        the backward pass that computes a step again, in which
                                                                   torch has left the mode
``recorder``                who runs the inner loop                :class:`~metalearn.inner.SupportGradient`, which asks it for
                                                                   the gradient
``asks``                    off while operators are recorded       normalisation, which takes a quicker way where scales are
                                                                   positive
==========================  =====================================  ========================================================

A thread that computes for another one is handed a copy of the context (``execution/threads.py``), and so is the backward pass
that computes a step again (``memory.py``).

What else is ambient belongs to torch. The grad mode and inference mode are set by ``grad_mode.py`` and by whoever asks for
values alone. Autocast is the caller's, and our operators obey it. ``training`` of every layer is set by
``network/structure.py`` for the time of a run. Calls of torch's functions are answered by the one mode of
``kernels/routing.py`` during a forward pass, and by those of ``execution/`` while ways of running are compared. Whether tasks
are stacked is not ambient: it is a field of :class:`~metalearn.inner.Adaptation`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from contextvars import ContextVar, Token
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

__all__ = [
    "OPERATORS",
    "Ambient",
    "Change",
    "answering",
    "asking",
    "current",
    "is_own",
    "keeping_everything",
    "own_kernels",
    "recording",
    "recording_steps",
    "remember",
    "remembering",
    "statistics",
    "twice_differentiable",
]

OPERATORS = ("conv", "linear", "norm")
"""The names of all groups of our operators."""
MOST_REMEMBERED = 32
"""What is computed once for support sets, or parts of them, in the course of an inner loop."""

Result = TypeVar("Result")


class Ambient(NamedTuple):
    """What holds around a computation, for whatever is called in it; who sets it is said at the top of this file.

    Attributes:
        operators: which of :data:`OPERATORS` are used; torch's, composed, for the others.
        twice_differentiable: whether what is computed must have a second derivative.
        policy: the one of :mod:`metalearn.inner.norm.policies` in force; ``None`` for statistics of all examples.
        rows: the number of leading examples that statistics are taken from; ``None`` for all.
        step: the inner steps that the weights have behind them.
        recording: whether statistics that are kept for later may be written.
        leaves_frozen: whether a call of ``F.batch_norm`` with ``training=False`` means what it says.
        keeps_everything: whether what is saved for the backward pass must be kept as it is.
        memory: what was computed of tensors that no step changes; ``None`` where nothing is remembered.
        answering: the mode that answers calls of torch's functions while ways of running are compared.
        recorder: takes inner gradients by recorded operators; ``None`` where they are taken by autograd.
        asks: whether what is done may depend on the values of tensors.
    """

    operators: frozenset[str] = frozenset()
    twice_differentiable: bool = False
    policy: Any = None
    rows: int | None = None
    step: int = 0
    recording: bool = False
    leaves_frozen: bool = True
    keeps_everything: bool = False
    memory: dict[Any, Any] | None = None
    answering: Any = None
    recorder: Any = None
    asks: bool = True


_NOTHING = Ambient()
_ambient: ContextVar[Ambient] = ContextVar("metalearn_ambient", default=_NOTHING)

current = _ambient.get
"""``current() -> Ambient``: what is ambient now."""


class Change:
    """Within this context these fields of the ambient value are others."""

    __slots__ = ("_changes", "_token")

    def __init__(self, **changes: Any) -> None:
        self._changes = changes

    def __enter__(self) -> None:
        self._token: Token[Ambient] = _ambient.set(_ambient.get()._replace(**self._changes))

    def __exit__(self, *_: object) -> None:
        _ambient.reset(self._token)


def own_kernels(*names: str) -> Change:
    """Within this context these of our operators (:data:`OPERATORS`) are used; torch's, composed, for the others.

    Without a name, and outside of any such context, none is: for forward-mode differentiation, and as an oracle. With ``"conv"``
    alone: for compilation.

    Example:
        >>> import torch
        >>> from metalearn import Conv4
        >>> from metalearn.inner import own_kernels
        >>> with own_kernels():  # torch's operators alone
        ...     Conv4()(torch.rand(2, 1, 28, 28)).shape
        torch.Size([2, 5])
    """
    return Change(operators=frozenset(names))


def is_own(name: str) -> bool:
    """Whether our operator of this name is in use."""
    return name in _ambient.get().operators


def twice_differentiable(enabled: bool) -> Change:
    """Whether what is computed within this context must have a second derivative."""
    return Change(twice_differentiable=enabled)


def statistics(rows: int | None = None, step: int = 0) -> Change:
    """Within this context batch normalisation takes its statistics from the first ``rows`` examples.

    Args:
        rows: the number of leading examples that the statistics are taken from; ``None`` for all.
        step: the inner steps that the weights have behind them, for the policy ``"per_step"``.

    Example:
        >>> import torch
        >>> from metalearn.inner import TaskBatchNorm, statistics
        >>> layer = TaskBatchNorm(torch.nn.BatchNorm1d(3), name="norm", stores=False)
        >>> with statistics(rows=4):
        ...     layer(torch.randn(10, 3)).shape
        torch.Size([10, 3])
    """
    return Change(rows=rows, step=step)


def recording(enabled: bool) -> Change:
    """Whether the policy ``"per_step"`` writes down the statistics that it meets: in a training step, once each.

    Example:
        >>> import torch
        >>> from metalearn.inner import TaskBatchNorm, recording
        >>> layer = TaskBatchNorm(torch.nn.BatchNorm1d(3), name="norm", stores=False)
        >>> with recording(False):
        ...     layer(torch.randn(10, 3)).shape
        torch.Size([10, 3])
    """
    return Change(recording=enabled)


def remembering(enabled: bool) -> Change:
    """Whether what is computed of constants within this context is remembered until its end."""
    return Change(memory={} if enabled else None)


def answering(mode: Any) -> Change:
    """Within this context ``mode`` answers calls of torch's functions also where a step is computed again."""
    return Change(answering=mode)


def remember(compute: Callable[[], Result], tensors: Sequence[Tensor], about: object) -> Result:
    """What was computed of these tensors, where that is remembered; else it is computed, and remembered if it may be.

    A view of the same values counts as the same, and a write to them counts.

    Args:
        compute: gives it.
        tensors: what it is computed of.
        about: what else it depends on; it can be a key.
    """
    memory = current().memory
    if memory is None or any(x.is_inference() for x in tensors):  # of these, writes are not counted
        return compute()
    key = (*((x.data_ptr(), x.shape, x.stride(), x.dtype, x._version) for x in tensors), about)
    if key not in memory:
        if len(memory) >= MOST_REMEMBERED:
            return compute()
        memory[key] = tensors, compute()  # with the tensors themselves, so that no others take their place
    result: Result = memory[key][1]
    return result


def recording_steps(recorder: Any) -> Change:
    """Within this context ``recorder`` takes inner gradients; ``None`` for autograd."""
    return Change(recorder=recorder)


def asking(enabled: bool) -> Change:
    """Whether within this context what is done may depend on the values of tensors."""
    return Change(asks=enabled)


def keeping_everything() -> contextlib.AbstractContextManager[Any]:
    """Within this context what operators save for the backward pass is kept as it is, whatever the hooks around it.

    These hooks are torch's own ambient state.
    """
    return torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor)
