"""Queries that are answered one by one: batch normalisation takes the statistics of the support set at the adapted weights."""

from __future__ import annotations

from torch import Tensor

from metalearn.inner.adaptation import Adaptation
from metalearn.inner.losses import network_tensors
from metalearn.inner.norm.frozen import Frozen, Recording
from metalearn.inner.rules import Params

__all__ = ["answer_alone"]


def answer_alone(
    adaptation: Adaptation, params: Params, adapted: Params, support: Tensor, query: Tensor, step: int
) -> Tensor:
    """Outputs of queries, of which none depends on the others: those of :meth:`AdaptedModel.independent`.

    The support set is passed once, for its statistics, and then the queries. Both are passed alone, so that the network sees
    sets of the sizes that it has seen before.

    Args:
        adaptation: the inner loop.
        params: all tensors by name.
        adapted: those that the inner loop has moved.
        support: examples ``[n, ...]`` that are not encoded, with a task axis where tasks are stacked.
        query: examples ``[m, ...]``, likewise.
        step: the inner steps behind ``adapted``.
    """
    learner = adaptation.learner

    def run(adapted: Params, support: Tensor, query: Tensor) -> Tensor:
        tensors = network_tensors({**params, **adapted})
        recording = Recording(learner.policy)
        learner.under(recording).predict(tensors, support, step)
        return learner.under(Frozen(recording.moments)).predict(tensors, query, step)

    return adaptation.map(run)(adapted, support, query)
