"""Which execution over tasks is used, and why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

from torch import nn

from metalearn.episode import Episode
from metalearn.inner import Adaptation, Learner, Schedule, find_inexactness

__all__ = ["Choice", "ExecutionName", "choose_execution"]

ExecutionName = Literal["auto", "sequential", "vectorized"]


class Choice(NamedTuple):
    """An execution and the reason for it, a clause that follows "because"."""

    name: Literal["sequential", "vectorized"]
    reason: str


def choose_execution(
    asked: ExecutionName,
    adaptation: Adaptation,
    rebuild: Callable[[nn.Module], Learner],
    episode: Episode,
    schedule: Schedule,
) -> Choice:
    """Choose how tasks are executed; vectorised only where a float64 probe has shown it exact.

    ``auto`` prefers the sequential execution for networks with convolutions on a CPU: stacked over tasks they are slower there,
    unless the images are small (``docs/execution.md`` has the measurements). It never times, so that a run is the same twice.
    """
    if asked == "sequential":
        return Choice("sequential", "it was asked for")
    convolves = any(isinstance(layer, nn.modules.conv._ConvNd) for layer in adaptation.learner.backbone.modules())
    if asked == "auto" and convolves and episode.support.x.device.type == "cpu":
        return Choice("sequential", "on a CPU, convolutions over stacked tasks are slower for all but small images")
    inexact = find_inexactness(adaptation, rebuild, episode, schedule)
    if inexact is not None:
        return Choice("sequential", f"the vectorised execution is not exact here: {inexact}")
    wish = "it was asked for and" if asked == "vectorized" else "it needs fewer calls and"
    return Choice("vectorized", f"{wish} a float64 probe has shown it exact")
