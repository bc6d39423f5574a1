"""Which execution over tasks is used, and why."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal, NamedTuple

import torch
from torch import nn

from metalearn.episode import Episode
from metalearn.errors import ConfigError
from metalearn.inner import Adaptation, MemoryMode, Plan, Probe, Schedule, Way
from metalearn.inner.learner import PlainLearner
from metalearn.inner.losses import double_loss
from metalearn.inner.network.layers import find_hooked_layer

__all__ = ["Choice", "ExecutionName", "choose_execution", "make_plan"]

ExecutionName = Literal["auto", "sequential", "vectorized"]

AT_ONCE = 1 << 18
"""Input values of the sets that are computed together on a CPU: with more, activations fall out of its caches."""


class Choice(NamedTuple):
    """How the inner loop is run.

    Attributes:
        name: the execution over tasks.
        memory: the memory mode.
        own_operators: whether our operators are used for convolutions and normalisation.
        threads: whether tasks may be shared among threads.
        as_given: whether the caller's network itself is called, not our copy of its layers.
        reasons: clauses that follow "because"; one for the execution, then one for every other wish that was not granted.
    """

    name: Literal["sequential", "vectorized"]
    memory: MemoryMode
    own_operators: bool
    threads: bool
    as_given: bool
    reasons: list[str]

    def is_like(self, other: Choice) -> bool:
        """Whether layers and tasks are run alike."""
        ours, theirs = ((each.name, each.own_operators, each.as_given) for each in (self, other))
        return ours == theirs

    @property
    def operators(self) -> list[str]:
        """The operators of ours that are used, by their names."""
        return ["conv", "norm"] if self.own_operators else []


def choose_execution(
    asked: ExecutionName,
    adaptation: Adaptation,
    episode: Episode,
    schedule: Schedule,
    kernels: bool = True,
    evaluating: bool = False,
) -> Choice:
    """Choose how the inner loop is run: as asked where a float64 probe shows that to be exact, else more plainly.

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
    as_given = learner.norm != "per_step"  # its statistics belong to our copy of the layers
    memory: MemoryMode = adaptation.memory if schedule.order == 2 else "store"
    plain = Way(False, "store" if memory == "store" else "remat", False, as_given)
    try:
        probe = Probe(adaptation, episode, schedule, evaluating)
    except ConfigError:
        raise
    except (RuntimeError, TypeError) as error:  # what is wrong with the network itself comes up again
        return _take(plain, _blame(adaptation, episode, error))
    if not probe.finite:
        return _take(plain, "its meta-gradient on noise is not finite, so nothing else is proven")
    notes = []
    if probe.attends and schedule.order == 2 and not learner.encodes:
        notes.append("attention is computed by torch's math kernel, since the faster ones have no second derivative")
    hooked = find_hooked_layer(learner.backbone)
    if hooked is not None:
        _prove(probe, plain)
        return _take(
            plain, f"layer {hooked!r} has hooks, which see one task at a time and torch's own operators", *notes
        )
    one_by_one = _find_reason_for_one_task(asked, adaptation, episode, probe)
    best = Way(one_by_one is None, memory, kernels, False)
    unfit = probe.find_inexactness(best)
    if unfit is None and evaluating and best.stacked:  # a task that is adapted alone is run so
        unfit = probe.find_inexactness(best._replace(stacked=False))
    if unfit is None:
        return _take(
            best, one_by_one or _PROVEN[asked], *notes, threads=_may_use_threads(best, adaptation, episode, evaluating)
        )
    way, reasons = _find_exact(probe, best._replace(stacked=False), plain)
    reasons += notes
    if one_by_one is None and way.as_given:
        one_by_one, *reasons = reasons
    elif one_by_one is None:
        if evaluating or way != best._replace(stacked=False):
            unfit = probe.find_inexactness(way._replace(stacked=True))
        if unfit is None:
            way = way._replace(stacked=True)
            return _take(way, _PROVEN[asked], *reasons, threads=_may_use_threads(way, adaptation, episode, evaluating))
        one_by_one = f"the vectorised execution is not exact here: {unfit}"
    return _take(way, one_by_one or "", *reasons)


_PROVEN = {
    "vectorized": "it was asked for and a float64 probe has shown it exact",
    "auto": "it needs fewer calls and a float64 probe has shown it exact",
}


def _take(way: Way, *reasons: str, threads: bool = False) -> Choice:
    name: Literal["sequential", "vectorized"] = "vectorized" if way.stacked else "sequential"
    return Choice(name, way.memory, way.own_operators, threads, way.as_given, list(reasons))


PLAINEST_TOLERANCE = 1e-6
"""Of the way that calls the network's own operators: what differs by less is rounding that a deep network has amplified."""


def _prove(probe: Probe, way: Way) -> None:
    unfit = probe.find_inexactness(way, PLAINEST_TOLERANCE)
    if unfit is not None and not way.as_given:
        raise ConfigError(
            f"norm is 'per_step', which needs our copy of the backbone's layers, but that is not exact here: {unfit}; use "
            "norm='transductive' or norm='support', which can call the layers themselves"
        )
    if unfit is not None:
        raise ConfigError(
            f"the inner loop is not exact for this backbone ({unfit}), in whatever way it is run; give that layer an ordinary "
            "forward pass, which depends on its input, its parameters and its buffers alone"
        )


def _find_exact(probe: Probe, best: Way, plain: Way) -> tuple[Way, list[str]]:
    """The best exact way of running one task at a time, and why it is not better."""
    reasons = []
    way = best._replace(memory="store")
    unfit = probe.find_inexactness(way)
    if unfit is not None and way.own_operators:
        way = way._replace(own_operators=False)
        ours, unfit = unfit, probe.find_inexactness(way)
        if unfit is None:
            reasons.append(f"torch's own operators are used, because ours are not exact here: {ours}")
    if unfit is not None:
        _prove(probe, plain)
        return plain, [f"the network itself is called, because a copy of its layers is not exact here: {unfit}"]
    way = way._replace(memory=best.memory)
    while way.memory != "store":
        unfit = probe.find_inexactness(way)
        if unfit is None:
            break
        next_one: MemoryMode = "remat" if way.memory == "mixed" else "store"
        reasons.append(f"memory is {next_one!r}, because {way.memory!r} is not exact here: {unfit}")
        way = way._replace(memory=next_one)
    return way, reasons


def _may_use_threads(way: Way, adaptation: Adaptation, episode: Episode, evaluating: bool) -> bool:
    """Forward-mode levels are the process's, and so is the random generator of dropout."""
    return way.stacked and way.memory != "mixed" and not _draws_random_numbers(adaptation, episode, evaluating)


def _find_reason_for_one_task(
    asked: ExecutionName, adaptation: Adaptation, episode: Episode, probe: Probe
) -> str | None:
    """Why tasks are executed one after another whatever a comparison says."""
    if asked == "sequential":
        return "it was asked for"
    if asked == "auto" and _fills_caches(episode):
        return "on a CPU, a single task with images of this size fills the caches and the cores"
    if adaptation.learner.norm == "per_step":
        return "norm 'per_step' writes statistics task by task"
    if not adaptation.rule.batches:
        return "the inner optimiser takes one task at a time"
    if probe.draws:
        return "the network draws random numbers beside dropout's, other ones in every execution"
    return None


def make_plan(
    choice: Choice, adaptation: Adaptation, episode: Episode, at_once: int | None, compiled: bool = False
) -> Plan:
    """How many tasks are adapted together, and by how many threads.

    On a CPU as many as keep activations in its caches, shared among threads; elsewhere all, unless ``at_once`` says otherwise.
    What is compiled for a CPU is the step of one task: a graph of many is not faster there, and takes many times as long.
    """
    xs, xq = episode.support.x, episode.query.x
    tasks = len(xs)
    if choice.name == "sequential" or (compiled and xs.device.type == "cpu" and at_once is None):
        return Plan()
    if xs.device.type != "cpu":
        return Plan(min(at_once or tasks, tasks))
    network = adaptation.learner.backbone
    if not any(isinstance(layer, nn.modules.conv._ConvNd) for layer in network.modules()):
        return Plan(min(at_once or tasks, tasks))
    support, query = xs[0].numel(), xq[0].numel()
    # features of both sets are computed before the inner loop
    each = support + query if adaptation.learner.encodes else support
    workers = 1
    if choice.threads:
        # a thread needs enough arithmetic beside Python's own work, of which there is one at a time
        few = max(1, AT_ONCE // (4 * each))
        workers = max(1, min(torch.get_num_threads(), tasks // min(few, 4)))
    together = at_once or max(1, min(math.ceil(tasks / workers), AT_ONCE // each))
    return Plan(min(together, tasks), max(1, AT_ONCE // query), workers)


def _fills_caches(episode: Episode) -> bool:
    values = sum(role.x[0].numel() for role in episode)
    return episode.support.x.device.type == "cpu" and values > 4 * AT_ONCE


def _blame(adaptation: Adaptation, episode: Episode, error: Exception) -> str:
    """Whether it is the loss or the network that does not run in float64."""
    (x, y), _ = episode
    double = replace(adaptation, loss=double_loss(adaptation.loss))
    learner = adaptation.learner.as_given()
    with (
        learner.structure.undisturbed(),
        learner.running("evaluating") as running,
        torch.no_grad(),
        torch.autocast(x.device.type, enabled=False),
    ):
        try:
            support, _ = running.encode(running.outer(), x[0], x[0])
            outputs = running.support_logits(running.outer(), support).double()
        except RuntimeError:
            outputs = None
        if outputs is not None:
            params = {name: value.double() for name, value in adaptation.outer().items()}
            try:
                double.task_loss(params, outputs, y[0].double() if y.is_floating_point() else y[0])
            except (RuntimeError, TypeError) as found:
                why = str(found).strip().splitlines()[0][:160]
                return (
                    f"the loss does not run in float64, so nothing else is proven: {why} (a torch.nn.Module whose tensors are "
                    "buffers would)"
                )
    why = str(error).strip().splitlines()[0][:160]
    return f"the network does not run in float64, so nothing else is proven: {why}"


def _draws_random_numbers(adaptation: Adaptation, episode: Episode, evaluating: bool) -> bool:
    """Whether a forward pass moves the random generator, as dropout does in training."""
    x = episode.support.x[0]
    plain = PlainLearner(adaptation.learner)
    with (
        plain.structure.undisturbed(),
        torch.random.fork_rng([x.device] if x.is_cuda else []),
        plain.running("evaluating" if evaluating else "as_it_is") as running,
        torch.no_grad(),
    ):
        before = torch.get_rng_state()
        running.support_logits(running.outer(), x)
        return not torch.equal(before, torch.get_rng_state())
