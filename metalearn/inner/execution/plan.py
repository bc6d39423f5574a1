"""How many tasks are executed together, and by how many threads."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import nn

from metalearn.episode import Episode
from metalearn.inner.adaptation import Adaptation
from metalearn.inner.execution.choice import Choice

__all__ = ["CACHED_VALUES", "Plan", "fills_caches", "make_plan"]

CACHED_VALUES = 1 << 18
"""Input values of the sets that are computed together on a CPU: with more, activations fall out of its caches."""

QUERY_VALUES = 1 << 17
"""Input values of the query sets that are differentiated together on a CPU: more of them are hardly faster, and hold more."""


class Plan(NamedTuple):
    """How many tasks are executed at once.

    Attributes:
        tasks: how many tasks are adapted together; ``None`` for one after another, without a task axis.
        queries: how many of them have their query sets differentiated together; ``None`` for all.
        workers: how many threads take parts side by side.

    Example:
        >>> from metalearn.inner import Plan
        >>> Plan(tasks=8, queries=4, workers=2)
        Plan(tasks=8, queries=4, workers=2)
    """

    tasks: int | None = None
    queries: int | None = None
    workers: int = 1

    def within(self, bound: Plan) -> Plan:
        """This plan with no more tasks and threads than ``bound`` has."""
        if self.tasks is None or bound.tasks is None:
            return self
        return self._replace(tasks=min(self.tasks, bound.tasks), workers=min(self.workers, bound.workers))

    def halved(self) -> Plan | None:
        """Half as many tasks at once, of one task half as many threads; ``None`` where there is a task at a time already."""
        if self.tasks is not None and self.tasks > 1:
            return self._replace(tasks=self.tasks // 2)
        return self._replace(workers=self.workers // 2) if self.tasks is not None and self.workers > 1 else None

    def describe(self) -> str:
        """``"8 at once on each of 2 threads"``."""
        return f"{self.tasks or 1} at once" + (f" on each of {self.workers} threads" if self.workers > 1 else "")


def make_plan(
    choice: Choice,
    adaptation: Adaptation,
    episode: Episode,
    at_once: int | None,
    compiled: bool = False,
    evaluating: bool = False,
) -> Plan:
    """How many tasks are adapted together, and by how many threads.

    On a CPU as many as keep activations in its caches, shared among threads; elsewhere all, unless ``at_once`` says otherwise.
    What is compiled for a CPU is the step of one task: a graph of many is not faster there, and takes many times as long.

    Args:
        choice: how the inner loop is run.
        adaptation: the inner loop.
        episode: ``B`` tasks.
        at_once: the tasks to execute together; ``None`` for what is fastest.
        compiled: whether the step is compiled.
        evaluating: whether there is no gradient of the query sets, and no graph that they would be held beside.
    """
    xs, xq = episode.support.x, episode.query.x
    tasks = len(xs)
    if choice.name == "sequential" or (compiled and xs.device.type == "cpu" and at_once is None):
        return Plan()
    if xs.device.type != "cpu" or not _convolves(adaptation.learner.backbone):
        return Plan(min(at_once or tasks, tasks))
    support, query = xs[0].numel(), xq[0].numel()
    # features of both sets are computed before the inner loop
    values = support + query if adaptation.learner.encodes else support
    workers = 1
    if choice.threads:
        # a thread needs enough arithmetic beside Python's own work, of which there is one at a time
        least = max(1, CACHED_VALUES // (4 * values))
        workers = max(1, min(torch.get_num_threads(), tasks // min(least, 4)))
    together = at_once or max(1, min(math.ceil(tasks / workers), CACHED_VALUES // values))
    workers = min(workers, math.ceil(tasks / together))
    return Plan(min(together, tasks), max(1, (CACHED_VALUES if evaluating else QUERY_VALUES) // query), workers)


def fills_caches(episode: Episode) -> bool:
    """Whether a single task fills the caches of a CPU."""
    values = sum(role.x[0].numel() for role in episode)
    return episode.support.x.device.type == "cpu" and values > 4 * CACHED_VALUES


def _convolves(network: nn.Module) -> bool:
    return any(isinstance(layer, nn.modules.conv._ConvNd) for layer in network.modules())
