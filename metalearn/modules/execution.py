"""Which execution over tasks is used, and why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

from torch import nn

from metalearn.episode import Episode
from metalearn.inner import Adaptation, HeadLearner, Learner, Schedule, find_inexactness

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

    ``auto`` prefers the sequential execution on a CPU where convolutions adapt: per-task filters become grouped
    convolutions, which are slower there than one task after another.
    """
    if asked == "sequential":
        return Choice("sequential", "it was asked for")
    learner = adaptation.learner
    convolves = any(isinstance(layer, nn.modules.conv._ConvNd) for layer in learner.backbone.modules())
    if (
        asked == "auto"
        and episode.support.x.device.type == "cpu"
        and convolves
        and not isinstance(learner, HeadLearner)
    ):
        return Choice("sequential", "per-task convolutions are slower than one task after another on a CPU")
    inexact = find_inexactness(adaptation, rebuild, episode, schedule)
    if inexact is not None:
        return Choice("sequential", f"the vectorised execution is not exact here: {inexact}")
    wish = "it was asked for and" if asked == "vectorized" else "it is faster here and"
    return Choice("vectorized", f"{wish} a float64 probe has shown it exact")
