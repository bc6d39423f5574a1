"""The gradient of the query loss of some tasks, through their inner loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from metalearn.episode import Episode
from metalearn.inner.adaptation import Adaptation
from metalearn.inner.ambient import remembering
from metalearn.inner.execution.queries import QuerySets
from metalearn.inner.execution.schedule import Schedule
from metalearn.inner.rules import Params

__all__ = ["Differentiate", "Part", "differentiate"]


class Part(NamedTuple):
    """What some of the tasks contribute.

    Attributes:
        loss: the sum of their weighted query losses.
        logits: ``[b, m, N]`` after the last inner step.
        grads: the gradient of ``loss`` for every outer tensor.
    """

    loss: Tensor
    logits: Tensor
    grads: tuple[Tensor, ...]


Differentiate = Callable[[Adaptation, Params, Sequence[Tensor], Episode, Schedule, int | None], Part]


def differentiate(
    adaptation: Adaptation,
    params: Params,
    extra: Sequence[Tensor],
    episode: Episode,
    schedule: Schedule,
    queries: int | None = None,
) -> Part:
    """The summed query loss of some tasks and its gradient, by the chain rule.

    ``outer`` are ``params`` and ``extra``. ``roots_j`` are the weights ``adapted_j`` after ``j`` inner steps, the ``encoded``
    sets, and the ``params`` that do not adapt. Then::

        loss       = sum_j weight_j query_loss(roots_j)
        cotangents = d loss / d roots                          with roots cut from their graph: QuerySets.differentiate
        grads      = sum_roots cotangents d roots / d outer    one backward pass through the inner loop: _pull_back

    Args:
        adaptation: the inner loop; where it is not stacked, the tasks must be one.
        params: the outer tensors by name.
        extra: further outer tensors, such as learned step sizes.
        episode: these tasks.
        schedule: see :class:`Schedule`.
        queries: the tasks whose query sets are differentiated at once; ``None`` for all.
    """
    (xs, ys), (xq, yq) = episode
    if not adaptation.stacked:
        xs, ys, xq, yq = (tensor.squeeze(0) for tensor in (xs, ys, xq, yq))
    support, query = adaptation.encode(params, xs, xq)
    sets = QuerySets(adaptation, params, support, query, yq, queries)
    with remembering(True):
        iterates = adaptation.iterates(params, support, ys, schedule.steps, schedule.settings, schedule.order)
        losses: list[Tensor] = []
        roots: list[Tensor] = []
        cotangents: list[Tensor] = []
        for step, adapted in enumerate(iterates):
            weight = schedule.weight(step)
            if weight == 0 and step < schedule.steps:
                continue
            gradient = sets.differentiate(adapted, step, weight)
            losses.append(gradient.loss)
            roots += gradient.roots
            cotangents += gradient.cotangents
        logits = gradient.logits  # of the last step, which is never left out
        grads = _pull_back(roots, cotangents, [*params.values(), *extra])
    return Part(torch.stack(losses).sum(), logits if adaptation.stacked else logits[None], grads)


def _pull_back(roots: list[Tensor], cotangents: list[Tensor], outer: list[Tensor]) -> tuple[Tensor, ...]:
    """The sum of ``cotangent d root / d outer`` over the roots."""
    reaching = [(root, cotangent) for root, cotangent in zip(roots, cotangents, strict=True) if root.requires_grad]
    grads = torch.autograd.grad(
        [root for root, _ in reaching], outer, [cotangent for _, cotangent in reaching], materialize_grads=True
    )
    # up to torch 2.6 a gradient that is not there is a leaf that asks for one
    return tuple(grad.detach() for grad in grads)
