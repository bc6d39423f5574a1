"""How the tasks of a meta-batch are executed: one after another, or all in one set of kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metalearn.episode import Batch, Episode
from metalearn.inner.adaptation import Adaptation
from metalearn.inner.rules import Params, StepSizes
from metalearn.inner.unroll import last

__all__ = ["MetaLoss", "Schedule", "evaluate", "sequential", "vectorized"]


class Schedule(NamedTuple):
    """How far and how exactly the inner loop is run.

    Attributes:
        steps: the number of inner steps.
        step_sizes: of each step and tensor, see :data:`metalearn.inner.rules.StepSizes`.
        order: 2 for the exact meta-gradient, 1 for the first-order one.
    """

    steps: int
    step_sizes: StepSizes
    order: int


class MetaLoss(NamedTuple):
    """The mean query loss, and the query outputs it came from.

    Attributes:
        loss: scalar, with a graph to every outer tensor.
        logits: ``[B, n, N]``, without a graph.
    """

    loss: Tensor
    logits: Tensor


def sequential(
    adaptation: Adaptation, params: Params, extra: Iterable[Tensor], episode: Episode, schedule: Schedule
) -> MetaLoss:
    """Adapt the tasks one after another; exact for any ``nn.Module``.

    Each task is differentiated as soon as its query loss is known, so that memory does not grow with the number of
    tasks and the buffers of one task stay warm for the next. The gradients are then attached to the returned loss.

    Args:
        adaptation: the inner loop.
        params: the outer tensors by name.
        extra: further outer tensors that the meta-gradient reaches, such as learned step sizes.
        episode: ``B`` tasks.
        schedule: see :class:`Schedule`.
    """
    outer = [*params.values(), *extra]
    tasks = len(episode.support.x)
    loss = torch.zeros((), device=episode.query.x.device)
    total: list[Tensor] | None = None
    logits = []
    for task in range(tasks):
        task_loss, task_logits = _task_loss(adaptation, params, _task(episode, task), schedule)
        grads = torch.autograd.grad(task_loss / tasks, outer, materialize_grads=True)
        total = list(grads if total is None else torch._foreach_add(total, grads))
        loss = loss + task_loss.detach() / tasks
        logits.append(task_logits.detach())
    assert total is not None
    attached: Tensor = _AttachedGradient.apply(loss, len(outer), *outer, *total)
    return MetaLoss(attached, torch.stack(logits))


def vectorized(
    adaptation: Adaptation, params: Params, extra: Iterable[Tensor], episode: Episode, schedule: Schedule
) -> MetaLoss:
    """Adapt all tasks at once; the arguments are those of :func:`sequential`."""
    losses, logits = _task_loss(replace(adaptation, stacked=True), params, episode, schedule)
    return MetaLoss(losses.mean(), logits.detach())


def evaluate(
    adaptation: Adaptation, params: Params, episode: Episode, steps: Iterable[int], step_sizes: StepSizes
) -> dict[int, Tensor]:
    """Query outputs after each of the given numbers of inner steps, without any graph.

    Returns:
        for each number of steps, ``[B, n, N]``.
    """
    wanted = sorted(set(steps))
    params = {name: value.detach() for name, value in params.items()}

    def run(episode: Episode) -> list[Tensor]:
        (support, targets), query = episode.support, episode.query.x
        with torch.no_grad():
            support, query = adaptation.encode(params, support, query)
        found = []
        for step, adapted in enumerate(adaptation.iterates(params, support, targets, wanted[-1], step_sizes, order=0)):
            if step in wanted:
                with torch.no_grad():
                    found.append(adaptation.query_logits(params, adapted, support, query))
        return found

    if adaptation.stacked:
        return dict(zip(wanted, run(episode), strict=True))
    rows = [run(_task(episode, task)) for task in range(len(episode.support.x))]
    return {step: torch.stack(column) for step, column in zip(wanted, zip(*rows, strict=True), strict=True)}


Execution = Callable[[Adaptation, Params, Iterable[Tensor], Episode, Schedule], MetaLoss]


def _task(episode: Episode, task: int) -> Episode:
    (xs, ys), (xq, yq) = episode
    return Episode(Batch(xs[task], ys[task]), Batch(xq[task], yq[task]))


def _task_loss(adaptation: Adaptation, params: Params, episode: Episode, schedule: Schedule) -> tuple[Tensor, Tensor]:
    support, query = adaptation.encode(params, episode.support.x, episode.query.x)
    steps, sizes, order = schedule
    adapted = last(adaptation.iterates(params, support, episode.support.y, steps, sizes, order))
    logits = adaptation.query_logits(params, adapted, support, query)
    return adaptation.query_loss(logits, episode.query.y), logits


class _AttachedGradient(torch.autograd.Function):
    """A loss whose gradient is already known: backward hands it to the outer tensors, so that hooks and DDP see it."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, count: int, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors[count:])
        ctx.count = count
        return loss.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        known = torch._foreach_mul(list(ctx.saved_tensors), grad)
        return (None, None, *known, *(None,) * ctx.count)
