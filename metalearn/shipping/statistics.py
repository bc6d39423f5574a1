"""The statistics of a support set, by which a model normalises queries that come one by one."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from weakref import WeakSet

import torch
from torch import Tensor, nn

from metalearn.inner.ambient import own_kernels
from metalearn.inner.learner import Learner
from metalearn.inner.norm.frozen import Frozen, Recording
from metalearn.inner.norm.moments import Moments
from metalearn.inner.rules import Params

__all__ = ["choose_statistics", "name_statistics", "record_statistics", "run_independently"]


log = logging.getLogger(__name__)

_WARNED: WeakSet[nn.Module] = WeakSet()
"""Networks of which it was said that a single query is normalised otherwise."""


def choose_statistics(learner: Learner, x: Tensor) -> Learner:
    """The learner for queries ``x`` ``[n, ...]``: a single one has no statistics of its own, which is said once."""
    if len(x) > 1 or not learner.needs_many_queries:
        return learner
    if learner.backbone not in _WARNED:
        _WARNED.add(learner.backbone)
        lacks, apart = (
            "has no batch statistics of its own",
            "normalised by those of the support set, as under norm='support'",
        )
        if learner.by_support is not None:
            lacks, apart = learner.by_support, "answered by the support set alone"
        log.warning("a single query %s, so it is %s; pass queries together for norm='transductive'", lacks, apart)
    return learner.with_support_statistics()


@torch.no_grad()
def record_statistics(learner: Learner, tensors: Params, support: Tensor, step: int) -> dict[str, Moments]:
    """The mean and variance by which a policy normalises the support set, at every normalisation of the network.

    Args:
        learner: calls the network, and has the policy.
        tensors: all of the network's, adapted.
        support: examples ``[n, ...]``.
        step: the inner steps that the tensors have behind them.
    """
    tensors = {name: value.clone() for name, value in tensors.items()}
    with learner.running("evaluating") as running, own_kernels():
        recording = Recording(running.policy)
        running.under(recording).predict(tensors, support, step)
    return recording.moments


def run_independently(
    learner: Learner, tensors: Params, moments: Mapping[str, Moments], x: Tensor, step: int
) -> Tensor:
    """Outputs for queries ``x`` ``[n, ...]``, normalised by statistics that were recorded; torch's own operators compute them."""
    with learner.running("evaluating") as running, own_kernels():
        return running.under(Frozen(dict(moments))).predict(tensors, x, step)


def name_statistics(name: str) -> tuple[str, str]:
    """How the mean and the variance of a normalisation are called among a model's buffers."""
    layer, _, number = name.partition(":")
    end = f"_{number}" if number else ""
    return f"{layer}.running_mean{end}", f"{layer}.running_var{end}"
