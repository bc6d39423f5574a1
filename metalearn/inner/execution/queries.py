"""The gradient of the query loss of some tasks, taken a few query sets at a time.

Query sets are larger than support sets. Where the tasks of a stack fill the caches with them, their loss is taken in chunks:
what belongs to a task is joined again, what all tasks share is summed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import EllipsisType
from typing import NamedTuple

import torch
from torch import Tensor

from metalearn.inner.adaptation import Adaptation
from metalearn.inner.rules import Params

__all__ = ["QueryGradient", "QuerySets"]

Rows = slice | EllipsisType
"""The tasks of a chunk; ``...`` where there is no task axis."""


class QueryGradient(NamedTuple):
    """The query loss of some tasks after an inner step, and its gradient.

    Attributes:
        loss: the weighted loss, summed over the tasks.
        logits: ``[b, m, N]``, or ``[m, N]`` without a task axis.
        roots: the tensors that the loss was computed from, with their graph.
        cotangents: the gradient of ``loss`` for each of them.
    """

    loss: Tensor
    logits: Tensor
    roots: list[Tensor]
    cotangents: list[Tensor]


class _Chunk(NamedTuple):
    """What the query sets of a few tasks give: the gradients of their own tensors, and of those that all tasks share."""

    loss: Tensor
    logits: Tensor
    of_tasks: tuple[Tensor, ...]
    of_shared: tuple[Tensor, ...]


@dataclass(frozen=True)
class QuerySets:
    """The query sets of some tasks, and what their predictions need.

    Attributes:
        adaptation: the inner loop.
        params: the outer tensors by name.
        support: the encoded support sets.
        query: the encoded query sets.
        targets: of the query sets.
        at_once: the tasks whose query sets are differentiated at once; ``None`` for all.
    """

    adaptation: Adaptation
    params: Params
    support: Tensor
    query: Tensor
    targets: Tensor
    at_once: int | None = None

    def differentiate(self, adapted: Params, step: int, weight: float) -> QueryGradient:
        """The query loss at the weights ``adapted``, which have ``step`` inner steps behind them, and its gradient."""
        others = {name: value for name, value in self.params.items() if name not in adapted}
        shared = {name: value.detach().requires_grad_() for name, value in others.items()}
        losses, logits, of_tasks = [], [], []
        of_shared: Sequence[Tensor] | None = None
        for rows in self._chunks():
            chunk = self._differentiate_chunk(rows, adapted, shared, step, weight)
            losses.append(chunk.loss)
            logits.append(chunk.logits)
            of_tasks.append(chunk.of_tasks)
            of_shared = _add(of_shared, chunk.of_shared)
        assert of_shared is not None
        encoded = [x for x in (self.support, self.query) if x.requires_grad]
        roots = [*adapted.values(), *encoded, *others.values()]
        cotangents = [*(_join(pieces) for pieces in zip(*of_tasks, strict=True)), *of_shared]
        loss = losses[0] if len(losses) == 1 else torch.stack(losses).sum()
        return QueryGradient(loss, _join(logits), roots, cotangents)

    def _chunks(self) -> list[Rows]:
        if not self.adaptation.stacked:
            return [...]
        tasks = len(self.query)
        size = self.at_once or tasks
        return [slice(first, first + size) for first in range(0, tasks, size)]

    def _differentiate_chunk(self, rows: Rows, adapted: Params, shared: Params, step: int, weight: float) -> _Chunk:
        """The same of the tasks ``rows``, at leaves: what the tensors came from is not differentiated here."""
        own = {name: value[rows].detach().requires_grad_() for name, value in adapted.items()}
        support, query = (x[rows].detach().requires_grad_(x.requires_grad) for x in (self.support, self.query))
        logits = self.adaptation.query_logits({**shared, **own}, own, support, query, step)
        loss = weight * self.adaptation.query_loss(shared, logits, self.targets[rows]).sum()
        leaves = [*own.values(), *(x for x in (support, query) if x.requires_grad)]
        grads = torch.autograd.grad(loss, [*leaves, *shared.values()], materialize_grads=True)
        grads = tuple(grad.detach() for grad in grads)
        return _Chunk(loss.detach(), logits.detach(), grads[: len(leaves)], grads[len(leaves) :])


def _join(pieces: Sequence[Tensor]) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(list(pieces))


def _add(total: Sequence[Tensor] | None, more: Sequence[Tensor]) -> Sequence[Tensor]:
    return more if total is None else [a + b for a, b in zip(total, more, strict=True)]
