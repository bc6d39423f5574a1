"""A graph in three parts: what no step changes, the inner gradient, and its product with a cotangent.

What the product reads of the gradient's nodes is handed on, or computed again from less.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from torch.fx import Node

from metalearn.inner.replay.effects import Effects, UnfitForReplayError, is_random, list_calls
from metalearn.inner.replay.recompute import choose_cheap
from metalearn.inner.replay.tracing import Traced

__all__ = ["Segments", "split"]


class Segments(NamedTuple):
    """The nodes of each part, in their order, and what it hands on.

    Attributes:
        constant: computed once for a support set.
        forward: computed in each step.
        backward: computed in each step of the backward pass; some nodes of the second again among them.
        kept_constant: values of the first that the others read.
        saved: values of the second, and inputs, that the third reads.
        draws: whether the third draws again what the second has drawn.
    """

    constant: list[Node]
    forward: list[Node]
    backward: list[Node]
    kept_constant: list[Node]
    saved: list[Node]
    draws: bool


def split(traced: Traced, effects: Effects, constants: int, keeps: bool = True) -> Segments:
    """Take a graph apart.

    Args:
        traced: the graph.
        effects: of its nodes.
        constants: how many of the last of ``others`` are the same in every step.
        keeps: whether values of the step are kept for the backward pass, which computes all again otherwise.

    Raises:
        UnfitForReplayError: a part would write to what belongs to another, or the backward pass draws.
    """
    calls = list_calls(traced.graph)
    inputs = {*traced.adapted, *traced.others, *traced.cotangents}
    changing = inputs - set(traced.others[len(traced.others) - constants :])
    constant = _find_constant(calls, effects, changing)
    needed = _find_needed(calls, effects, traced.grads)
    first = [node for node in calls if node in constant]
    forward = [node for node in calls if node not in constant and node in needed]
    backward = [node for node in calls if node not in constant and node not in needed]
    _check([first, forward, backward], effects)
    incoming, own = [*traced.adapted, *traced.others], set(forward)
    held = own & _find_read(backward, traced.products)
    if keeps:
        again = choose_cheap(forward, held, {*incoming, *first}, effects)
    else:
        again = own & _find_needed(forward, effects, held)
        drawn = set(filter(is_random, forward))
        if not drawn.isdisjoint(again):  # numbers come in the order of all draws
            again = own & _find_needed(forward, effects, held | drawn)
    last = again | set(backward)
    backward = [node for node in calls if node in last]
    read = _find_read(backward, traced.products) - again
    kept = [node for node in first if node in read | _find_read(forward, traced.grads)]
    saved = [node for node in (*incoming, *forward) if node in read]
    return Segments(first, forward, backward, kept, saved, any(map(is_random, again)))


def _find_read(calls: Iterable[Node], outputs: Iterable[Node]) -> set[Node]:
    """What nodes read, and what is handed out."""
    return {before for node in calls for before in node.all_input_nodes} | set(outputs)


def _find_constant(calls: list[Node], effects: Effects, changing: set[Node]) -> set[Node]:
    """The nodes that depend on nothing that changes; memory that one of the others writes to is not theirs."""
    constant = {node for node in calls if not is_random(node)}
    before = -1
    while before != len(constant):
        before = len(constant)
        for node in calls:
            moved = any(n in changing or (n.op == "call_function" and n not in constant) for n in node.all_input_nodes)
            lent = any(w not in constant for place in effects.touched(node) for w in effects.writers[place])
            if moved or lent:
                constant.discard(node)
    return constant


def _find_needed(calls: list[Node], effects: Effects, outputs: Iterable[Node]) -> set[Node]:
    """The nodes that the outputs depend on, those among them that write to what is read."""
    needed = set(outputs)
    read: set[int] = {place for node in outputs for place in effects.memory(node)}
    for node in reversed(calls):
        writes = any(node in effects.writers[place] for place in effects.touched(node) & read)
        if node in needed or writes:
            needed.add(node)
            needed.update(node.all_input_nodes)
            for before in (node, *node.all_input_nodes):
                read |= effects.memory(before)
    return needed


def _check(parts: list[list[Node]], effects: Effects) -> None:
    """Memory is written to by one part alone, and by no later one than the first that touches it."""
    owner: dict[int, int] = {}
    for index, part in enumerate(parts):
        for node in part:
            for place in effects.touched(node):
                first = owner.setdefault(place, index)
                if first != index and node in effects.writers[place]:
                    raise UnfitForReplayError("its backward pass writes to what the step holds")
            if index == 2 and is_random(node):
                raise UnfitForReplayError("its backward pass draws random numbers")
