"""Chooses how the inner loop is run: as asked where a float64 probe shows that to be exact, else more plainly."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from metalearn.episode import Episode
from metalearn.errors import ConfigError
from metalearn.inner.adaptation import Adaptation
from metalearn.inner.execution.choice import Choice
from metalearn.inner.execution.plan import fills_caches
from metalearn.inner.execution.probe import Probe
from metalearn.inner.execution.probe.failure import explain_failure
from metalearn.inner.execution.probe.forward_pass import draws_random_numbers
from metalearn.inner.execution.schedule import Schedule
from metalearn.inner.execution.way import Way
from metalearn.inner.inner_loop import ExecutionName
from metalearn.inner.memory import MemoryMode
from metalearn.inner.network.layers import find_hooked_layer

__all__ = ["choose_execution"]

PLAINEST_TOLERANCE = 1e-6
"""Of the way that calls the network's own operators: what differs by less is rounding that a deep network has amplified."""

_PROVEN = {
    "vectorized": "it was asked for and a float64 probe has shown it exact",
    "auto": "it needs fewer calls and a float64 probe has shown it exact",
}


def choose_execution(
    asked: ExecutionName,
    adaptation: Adaptation,
    episode: Episode,
    schedule: Schedule,
    kernels: bool = True,
    evaluating: bool = False,
) -> Choice:
    """Choose how the inner loop is run.

    It never times, so that a run is the same twice.

    Args:
        asked: what the user asked for.
        adaptation: the inner loop.
        episode: gives shapes.
        schedule: steps, step sizes and order.
        kernels: whether our operators may be used.
        evaluating: whether the network is in ``eval()``.

    Raises:
        ConfigError: no way of running is exact.
    """
    learner = adaptation.learner
    memory: MemoryMode = adaptation.memory if schedule.order == 2 else "store"
    as_given = learner.norm != "per_step"  # its statistics belong to our copy of the layers
    plain = Way(False, "store" if memory == "store" else "remat", False, as_given)
    try:
        probe = Probe(adaptation, episode, schedule, evaluating)
    except ConfigError:
        raise
    except (RuntimeError, TypeError) as error:  # what is wrong with the network itself comes up again
        return _make_choice(plain, [explain_failure(adaptation, episode, error)])
    if not probe.finite:
        return _make_choice(plain, ["its meta-gradient on noise is not finite, so nothing else is proven"])
    search = _Search(probe, asked, plain, _find_reason_for_one_task(asked, adaptation, episode, probe), evaluating)
    hooked = find_hooked_layer(learner.backbone)
    if hooked is None:
        way, reasons = search.find(Way(True, memory, kernels, False))
    else:
        search.check_plain()
        way = plain
        reasons = [f"layer {hooked!r} has hooks, which see one task at a time and torch's own operators"]
    if probe.attends and schedule.order == 2 and not learner.encodes:
        reasons.append("attention is computed by torch's math kernel, since the faster ones have no second derivative")
    return _make_choice(way, reasons, _may_use_threads(way, adaptation, episode, evaluating))


@dataclass(frozen=True)
class _Search:
    """Looks for the best way that is exact.

    Every method gives the way with the reasons why it is no better, the one for the execution over tasks first.

    Attributes:
        probe: compares ways with the network as it is given.
        asked: what the user asked for.
        plain: the plainest way.
        alone: why tasks are run one at a time whatever a comparison says; ``None`` if nothing speaks against a stack.
        evaluating: whether the network is in ``eval()``.
        compared: the ways that have been compared, and what was inexact of them.
    """

    probe: Probe
    asked: ExecutionName
    plain: Way
    alone: str | None
    evaluating: bool
    compared: dict[Way, str | None] = field(default_factory=dict)

    def find(self, best: Way) -> tuple[Way, list[str]]:
        """The best exact way, ``best`` if that is one."""
        single = best._replace(stacked=False)
        if self.alone is not None:
            way, reasons = self._find_single(single)
            return way, [self.alone, *reasons]
        inexact = self._compare(best)
        if inexact is None and self.evaluating:  # a task that is adapted alone is run so
            inexact = self._compare(single)
        if inexact is None:
            return best, [_PROVEN[self.asked]]
        way, reasons = self._find_single(single)
        if way.as_given:
            return way, reasons
        if self.evaluating or way != single:
            inexact = self._compare(way._replace(stacked=True))
        if inexact is None:
            return way._replace(stacked=True), [_PROVEN[self.asked], *reasons]
        return way, [f"the vectorised execution is not exact here: {inexact}", *reasons]

    def _find_single(self, best: Way) -> tuple[Way, list[str]]:
        """The best exact way of running one task at a time."""
        if self._compare(best) is None:
            return best, []
        way, reasons = best._replace(memory="store"), []
        inexact = self._compare(way)
        if inexact is not None and way.own_operators:
            way = way._replace(own_operators=False)
            ours, inexact = inexact, self._compare(way)
            if inexact is None:
                reasons = [f"torch's own operators are used, because ours are not exact here: {ours}"]
        if inexact is not None:
            self.check_plain()
            return self.plain, [
                f"the network itself is called, because a copy of its layers is not exact here: {inexact}"
            ]
        return self._find_memory(way, best.memory, reasons)

    def _find_memory(self, way: Way, memory: MemoryMode, reasons: list[str]) -> tuple[Way, list[str]]:
        """The leanest exact memory mode of a way that is exact where everything is stored."""
        way = way._replace(memory=memory)
        while way.memory != "store":
            inexact = self._compare(way)
            if inexact is None:
                break
            next_memory: MemoryMode = "remat" if way.memory == "mixed" else "store"
            reasons.append(f"memory is {next_memory!r}, because {way.memory!r} is not exact here: {inexact}")
            way = way._replace(memory=next_memory)
        return way, reasons

    def _compare(self, way: Way) -> str | None:
        """What is inexact in a way; ``None`` for nothing."""
        if way not in self.compared:
            self.compared[way] = self.probe.find_inexactness(way)
        return self.compared[way]

    def check_plain(self) -> None:
        """Refuse a network for which the plainest way is not exact either."""
        inexact = self.probe.find_inexactness(self.plain, PLAINEST_TOLERANCE)
        if inexact is None:
            return
        if not self.plain.as_given:
            raise ConfigError(
                f"norm is 'per_step', which needs our copy of the backbone's layers, but that is not exact here: {inexact}; use "
                "norm='transductive' or norm='support', which can call the layers themselves"
            )
        raise ConfigError(
            f"the inner loop is not exact for this backbone ({inexact}), in whatever way it is run; give that layer an ordinary "
            "forward pass, which depends on its input, its parameters and its buffers alone"
        )


def _make_choice(way: Way, reasons: list[str], threads: bool = False) -> Choice:
    name: Literal["sequential", "vectorized"] = "vectorized" if way.stacked else "sequential"
    return Choice(name, way.memory, way.own_operators, threads, way.as_given, reasons)


def _may_use_threads(way: Way, adaptation: Adaptation, episode: Episode, evaluating: bool) -> bool:
    """Forward-mode levels are the process's, and so is the random generator of dropout."""
    if not way.stacked or way.memory == "mixed":
        return False
    return not draws_random_numbers(
        adaptation.learner, episode.support.x[0], "evaluating" if evaluating else "as_it_is"
    )


def _find_reason_for_one_task(
    asked: ExecutionName, adaptation: Adaptation, episode: Episode, probe: Probe
) -> str | None:
    """Why tasks are executed one after another whatever a comparison says."""
    if asked == "sequential":
        return "it was asked for"
    if asked == "auto" and fills_caches(episode):
        return "on a CPU, a single task with images of this size fills the caches and the cores"
    if adaptation.learner.norm == "per_step":
        return "norm 'per_step' writes statistics task by task"
    if not adaptation.method.batches:
        return "the inner optimiser takes one task at a time"
    if probe.draws:
        return "the network draws random numbers beside dropout's, other ones in every execution"
    return None
