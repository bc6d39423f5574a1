"""Fewer operators with the same results, to the bit: no copy of another's value, one view in the place of a chain of them."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from metalearn.inner.replay.effects import Effects, is_random, list_calls
from metalearn.inner.replay.tracing import Traced

__all__ = ["simplify"]


def simplify(traced: Traced, effects: Effects) -> Traced:
    """The same graph, in place, and its outputs as they are named now."""
    same: dict[Node, Node] = {}
    _share_equal(traced, effects, same)
    _fold_views(traced, effects, same)
    _share_equal(traced, effects, same)  # views that have become the same
    outputs = [[_follow(node, same) for node in nodes] for nodes in (traced.grads, traced.products)]
    _drop_unused(traced, effects, {node for nodes in outputs for node in nodes})
    return traced._replace(grads=outputs[0], products=outputs[1])


def _follow(node: Node, same: dict[Node, Node]) -> Node:
    while node in same:
        node = same[node]
    return node


def _replace(node: Node, other: Node, same: dict[Node, Node]) -> None:
    node.replace_all_uses_with(other)
    same[node] = other


def _share_equal(traced: Traced, effects: Effects, same: dict[Node, Node]) -> None:
    """What is computed twice is computed once, unless it is written to or drawn."""
    known: dict[Any, Node] = {}
    for node in list_calls(traced.graph):
        if effects.is_written(node) or is_random(node) or effects.touched(node):
            continue
        key = node.target, _freeze(node.args), _freeze(dict(node.kwargs))
        if key in known:
            _replace(node, known[key], same)
        else:
            known[key] = node


def _freeze(value: Any) -> Any:
    """Arguments as a key, in which ``1``, ``1.0`` and ``True`` differ."""
    if isinstance(value, Node):
        return value
    if isinstance(value, (list, tuple)):
        return tuple(map(_freeze, value))
    if isinstance(value, dict):
        return tuple((key, _freeze(part)) for key, part in sorted(value.items()))
    return type(value), repr(value)


def _fold_views(traced: Traced, effects: Effects, same: dict[Node, Node]) -> None:
    """A view of a view is one of the first; one that changes nothing is dropped."""
    for node in list_calls(traced.graph):
        base, layout = effects.viewed(node), effects.layout(node)
        if node in same or base is None or layout is None:
            continue
        chain = [base]
        while (base := effects.viewed(base)) is not None:
            chain.append(base)
        equal = next((before for before in chain if effects.layout(before) == layout), None)
        if equal is not None:
            _replace(node, equal, same)
        elif len(chain) > 1 and chain[-1].op == "call_function":
            # an input may begin elsewhere in its memory in the next step; what is computed begins where it did
            node.target = torch.ops.aten.as_strided.default
            node.args = chain[-1], list(layout.shape), list(layout.stride), layout.offset
            node.kwargs = {}


def _drop_unused(traced: Traced, effects: Effects, outputs: set[Node]) -> None:
    """What reaches no output, neither by its value nor by what it writes."""
    live = set(outputs)
    read = {place for node in live for place in effects.memory(node)}
    output = next(node for node in traced.graph.nodes if node.op == "output")
    output.args = (tuple(outputs),)
    for node in reversed(list_calls(traced.graph)):
        writes = any(node in effects.writers[place] for place in effects.touched(node) & read)
        if node not in live and not writes:
            traced.graph.erase_node(node)
            continue
        live.update(node.all_input_nodes)
        for before in (node, *node.all_input_nodes):
            read |= effects.memory(before)
