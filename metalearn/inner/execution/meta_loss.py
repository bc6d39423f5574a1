"""How the tasks of a meta-batch are executed: one after another, or several in one set of kernels.

Either way a few tasks at a time are adapted, their query loss is differentiated down to the adapted tensors, and that
cotangent is taken back through the inner loop at once, so that memory does not grow with the number of tasks. The gradients are
then attached to the returned loss, whose backward pass hands them to the outer tensors, so that hooks and DDP see them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metalearn.episode import Batch, Episode
from metalearn.inner.adaptation import Adaptation
from metalearn.inner.execution.threads import Plan, run_parts
from metalearn.inner.rules import Params, StepSizes

__all__ = ["Differentiate", "MetaLoss", "Part", "Schedule", "differentiate", "evaluate", "meta_loss"]


class Schedule(NamedTuple):
    """How far and how exactly the inner loop is run.

    Attributes:
        steps: the number of inner steps.
        step_sizes: of each step and tensor, see :data:`metalearn.inner.rules.StepSizes`.
        order: 2 for the exact meta-gradient, 1 for the first-order one.
        weights: the weight of the query loss after 0, 1, ..., ``steps`` inner steps; ``None`` for that after the last alone.
    """

    steps: int
    step_sizes: StepSizes
    order: int
    weights: Sequence[float] | None = None


class MetaLoss(NamedTuple):
    """The mean query loss, and the query outputs it came from.

    Attributes:
        loss: scalar, with a graph to every outer tensor.
        logits: ``[B, n, N]`` after the last inner step, without a graph.
    """

    loss: Tensor
    logits: Tensor


class Part(NamedTuple):
    """What some of the tasks contribute.

    Attributes:
        loss: the sum of their weighted query losses.
        logits: ``[b, n, N]`` after the last inner step.
        grads: the gradient of ``loss`` for every outer tensor.
    """

    loss: Tensor
    logits: Tensor
    grads: tuple[Tensor, ...]


Differentiate = Callable[[Adaptation, Params, Sequence[Tensor], Episode, Schedule, int | None], Part]


def meta_loss(
    adaptation: Adaptation,
    params: Params,
    extra: Iterable[Tensor],
    episode: Episode,
    schedule: Schedule,
    plan: Plan,
    compiled: Differentiate | None = None,
) -> MetaLoss:
    """The mean query loss over the ``B`` tasks, with its gradient.

    Args:
        adaptation: the inner loop.
        params: the outer tensors by name.
        extra: further outer tensors that the meta-gradient reaches, such as learned step sizes.
        episode: ``B`` tasks.
        schedule: see :class:`Schedule`.
        plan: how many tasks are executed at once, and by how many threads.
        compiled: stands in for :func:`differentiate`.
    """
    extra = list(extra)
    run = compiled or differentiate
    tasks = len(episode.support.x)

    def part(adaptation: Adaptation, first: int, last: int) -> Part:
        found: Part = run(adaptation, params, extra, _slice(episode, first, last), schedule, plan.queries)
        return found

    parts = run_parts(part, adaptation, tasks, plan)
    grads = list(parts[0].grads)
    for other in parts[1:]:
        torch._foreach_add_(grads, list(other.grads))
    torch._foreach_div_(grads, tasks)
    loss = torch.stack([each.loss for each in parts]).sum() / tasks
    outer = [*params.values(), *extra]
    attached: Tensor = _AttachedGradient.apply(loss, len(outer), *outer, *grads)
    return MetaLoss(attached, torch.cat([each.logits for each in parts]))


def differentiate(
    adaptation: Adaptation,
    params: Params,
    extra: Sequence[Tensor],
    episode: Episode,
    schedule: Schedule,
    queries: int | None = None,
) -> Part:
    """The summed query loss of some tasks and its gradient.

    Args:
        adaptation: the inner loop; where it is not stacked, the tasks must be one.
        params: see :func:`meta_loss`.
        extra: see :func:`meta_loss`.
        episode: these tasks.
        schedule: see :class:`Schedule`.
        queries: the tasks whose query sets are differentiated at once; ``None`` for all.
    """
    (xs, ys), (xq, yq) = episode
    if not adaptation.stacked:
        xs, ys, xq, yq = (tensor.squeeze(0) for tensor in (xs, ys, xq, yq))
    steps, sizes, order, weights = schedule
    outer = [*params.values(), *extra]
    support, query = adaptation.encode(params, xs, xq)
    roots, cotangents = [], []
    losses, logits = [], None
    for step, adapted in enumerate(adaptation.iterates(params, support, ys, steps, sizes, order)):
        weight = weights[step] if weights is not None else float(step == steps)
        if weight == 0 and step < steps:
            continue
        value, logits, grads = _query(adaptation, params, adapted, support, query, yq, step, weight, queries)
        losses.append(value)
        roots += [root for root, _ in grads if root.requires_grad]
        cotangents += [grad for root, grad in grads if root.requires_grad]
    found = torch.autograd.grad(roots, outer, cotangents, materialize_grads=True)
    constant = tuple(
        grad.detach() for grad in found
    )  # up to torch 2.6 a gradient that is not there is a leaf that asks for one
    assert logits is not None
    return Part(torch.stack(losses).sum(), logits if adaptation.stacked else logits[None], constant)


def _query(
    adaptation: Adaptation,
    params: Params,
    adapted: Params,
    support: Tensor,
    query: Tensor,
    targets: Tensor,
    step: int,
    weight: float,
    queries: int | None,
) -> tuple[Tensor, Tensor, list[tuple[Tensor, Tensor]]]:
    """The query loss after ``step`` inner steps, the outputs, and the gradient for every tensor that it was computed from."""
    others = {name: value for name, value in params.items() if name not in adapted}
    sets = [tensor for tensor in (support, query) if tensor.requires_grad]
    shared = {name: value.detach().requires_grad_() for name, value in others.items()}
    tasks = len(query) if adaptation.stacked else 1
    size = queries or tasks
    losses, logits, per_task, of_shared = [], [], [], None
    for first in range(0, tasks, size):
        rows = slice(first, first + size) if adaptation.stacked else ...
        own = {name: value[rows].detach().requires_grad_() for name, value in adapted.items()}
        xs, xq = (x[rows].detach().requires_grad_(x.requires_grad) for x in (support, query))
        outputs = adaptation.query_logits({**shared, **own}, own, xs, xq, step)
        loss = weight * adaptation.query_loss(shared, outputs, targets[rows]).sum()
        leaves = [*own.values(), *(x for x in (xs, xq) if x.requires_grad)]
        found = tuple(
            grad.detach() for grad in torch.autograd.grad(loss, [*leaves, *shared.values()], materialize_grads=True)
        )
        losses.append(loss.detach())
        logits.append(outputs.detach())
        per_task.append(found[: len(leaves)])
        rest = found[len(leaves) :]
        of_shared = rest if of_shared is None else tuple(a + b for a, b in zip(of_shared, rest, strict=True))
    assert of_shared is not None
    joined = [column[0] if len(column) == 1 else torch.cat(column) for column in zip(*per_task, strict=True)]
    roots = [*adapted.values(), *sets, *others.values()]
    value = losses[0] if len(losses) == 1 else torch.stack(losses).sum()
    return (
        value,
        logits[0] if len(logits) == 1 else torch.cat(logits),
        list(zip(roots, [*joined, *of_shared], strict=True)),
    )


def evaluate(
    adaptation: Adaptation, params: Params, episode: Episode, steps: Iterable[int], step_sizes: StepSizes, plan: Plan
) -> dict[int, Tensor]:
    """Query outputs after each of the given numbers of inner steps, without any graph.

    Returns:
        for each number of steps, ``[B, n, N]``.
    """
    wanted = sorted(set(steps))
    params = {name: value.detach() for name, value in params.items()}

    def part(adaptation: Adaptation, first: int, last: int) -> list[Tensor]:
        (xs, ys), (xq, _) = _slice(episode, first, last)
        if not adaptation.stacked:
            xs, ys, xq = xs.squeeze(0), ys.squeeze(0), xq.squeeze(0)
        with torch.no_grad():
            support, query = adaptation.encode(params, xs, xq)
        found = []
        for step, adapted in enumerate(adaptation.iterates(params, support, ys, wanted[-1], step_sizes, order=0)):
            if step in wanted:
                with torch.no_grad():
                    logits = adaptation.query_logits(params, adapted, support, query, step)
                found.append(logits if adaptation.stacked else logits[None])
        return found

    if plan.tasks is not None and plan.queries is not None:
        plan = plan._replace(tasks=min(plan.tasks, plan.queries))
    rows = run_parts(part, adaptation, len(episode.support.x), plan)
    return {step: torch.cat(column) for step, column in zip(wanted, zip(*rows, strict=True), strict=True)}


def _slice(episode: Episode, first: int, last: int) -> Episode:
    (xs, ys), (xq, yq) = episode
    return Episode(Batch(xs[first:last], ys[first:last]), Batch(xq[first:last], yq[first:last]))


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
