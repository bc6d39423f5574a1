"""What the backward pass computes again: what takes little time, and is larger than what it is computed from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch._ops import OpOverload
from torch.fx import Node
from torch.utils._pytree import tree_leaves

from metalearn.inner.replay.effects import Effects

__all__ = ["choose_cheap"]

aten = torch.ops.aten

CHEAP = {
    aten.add, aten.sub, aten.mul, aten.div, aten.neg, aten.gt, aten.ge, aten.lt, aten.le, aten.eq, aten.ne, aten.where,
    aten._to_copy, aten.clone,
}  # fmt: skip
"""Operators that take no longer than their values take to be read and written."""


def choose_cheap(calls: Sequence[Node], held: set[Node], available: set[Node], effects: Effects) -> set[Node]:
    """The nodes to compute again, what lies between them and what is kept among them.

    Args:
        calls: the nodes of a step, in their order.
        held: those whose values the backward pass reads.
        available: nodes whose values it has anyway.
        effects: of all of them.
    """
    weights: dict[Node, int] = {}
    again: set[Node] = set()

    def weigh(node: Node) -> int:
        """Bytes that are kept for a value, if all are kept from which it can be computed at the least cost."""
        return 0 if node in available or node.op != "call_function" else weights[node]

    for node in calls:
        weights[node] = size = _count_bytes(node, effects)
        if _is_cheap(node, effects) and (rest := sum(map(weigh, node.all_input_nodes))) < size:
            weights[node] = rest
            again.add(node)
    chosen: set[Node] = set()
    wanted = list(held)
    while wanted:
        node = wanted.pop()
        if node in again and node not in chosen:
            chosen.add(node)
            wanted += node.all_input_nodes
    return chosen


def _is_cheap(node: Node, effects: Effects) -> bool:
    if effects.touched(node):
        return False
    return effects.is_view(node) or (isinstance(node.target, OpOverload) and node.target.overloadpacket in CHEAP)


def _count_bytes(node: Node, effects: Effects) -> int:
    """Of the memory that is held with a node's values."""
    values = [value for value in tree_leaves(effects.values[node]) if isinstance(value, torch.Tensor)]
    return sum({value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in values}.values())
