"""Which execution over tasks is used, and why."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal, NamedTuple

import torch
from torch import nn

from metalearn.episode import Episode
from metalearn.inner import Adaptation, MemoryMode, Plan, Probe, Schedule, evaluating
from metalearn.inner.losses import double_loss

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
        reasons: clauses that follow "because"; one for the execution, then one for every other wish that was not granted.
    """

    name: Literal["sequential", "vectorized"]
    memory: MemoryMode
    own_operators: bool
    threads: bool
    reasons: list[str]


def choose_execution(asked: ExecutionName, adaptation: Adaptation, episode: Episode, schedule: Schedule) -> Choice:
    """Choose how the inner loop is run: as asked where a float64 probe shows that to be exact, else more plainly.

    It never times, so that a run is the same twice.
    """
    plainest = Choice("sequential", "store" if adaptation.memory == "store" else "remat", False, False, [])
    hooked = _hooked_layer(adaptation.learner.backbone)
    if hooked is not None:
        reason = f"layer {hooked!r} has hooks, which see one task at a time and torch's own operators"
        return plainest._replace(reasons=[reason])
    try:
        probe = Probe(adaptation, episode, schedule)
    except (RuntimeError, TypeError) as error:  # what is wrong with the network itself comes up again
        return plainest._replace(reasons=[_blame(adaptation, episode, error)])
    reasons = []
    unfit = probe.find_inexactness("store", stacked=False)
    own = unfit is None
    if unfit is not None:
        reasons.append(f"torch's own operators are used, because ours are not exact here: {unfit}")
    memory: MemoryMode = adaptation.memory
    if schedule.order == 2:
        while memory != "store":
            unfit = probe.find_inexactness(memory, False, own)
            if unfit is None:
                break
            next_one: MemoryMode = "remat" if memory == "mixed" else "store"
            reasons.append(f"memory is {next_one!r}, because {memory!r} is not exact here: {unfit}")
            memory = next_one
    if asked == "sequential":
        return Choice("sequential", memory, own, False, ["it was asked for", *reasons])
    if asked == "auto" and _fills_caches(episode):
        reason = "on a CPU, a single task with images of this size fills the caches and the cores"
        return Choice("sequential", memory, own, False, [reason, *reasons])
    if adaptation.learner.norm == "per_step":
        return Choice("sequential", memory, own, False, ["norm 'per_step' writes statistics task by task", *reasons])
    if not adaptation.rule.batches:
        return Choice("sequential", memory, own, False, ["the inner optimiser takes one task at a time", *reasons])
    unfit = probe.find_inexactness(memory, True, own)
    if unfit is not None:
        return Choice(
            "sequential", memory, own, False, [f"the vectorised execution is not exact here: {unfit}", *reasons]
        )
    wish = "it was asked for and" if asked == "vectorized" else "it needs fewer calls and"
    # forward-mode levels are the process's, and so is the random generator of dropout
    threads = memory != "mixed" and not _draws_random_numbers(adaptation, episode)
    return Choice("vectorized", memory, own, threads, [f"{wish} a float64 probe has shown it exact", *reasons])


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


def _hooked_layer(network: nn.Module) -> str | None:
    for name, layer in network.named_modules():
        if layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks:
            return name or type(network).__name__
    return None


def _blame(adaptation: Adaptation, episode: Episode, error: Exception) -> str:
    """Whether it is the loss or the network that does not run in float64."""
    (x, y), _ = episode
    double = replace(adaptation, loss=double_loss(adaptation.loss))
    with evaluating(adaptation.learner.backbone), torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        try:
            support, _ = adaptation.encode(adaptation.outer(), x[0], x[0])
            outputs = adaptation.learner.support_logits(adaptation.learner.outer(), support).double()
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
    return f"a copy of the network does not run in float64, so nothing else is proven: {why}"


def _draws_random_numbers(adaptation: Adaptation, episode: Episode) -> bool:
    """Whether a forward pass in training mode moves the random generator, as dropout does."""
    network = adaptation.learner.backbone
    device = episode.support.x.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []), evaluating(network), torch.no_grad():
        network.train()
        before = torch.get_rng_state()
        params = adaptation.learner.outer()
        support, _ = adaptation.learner.encode(params, episode.support.x[0], episode.support.x[0])
        adaptation.learner.support_logits(params, support)
        return not torch.equal(before, torch.get_rng_state())
