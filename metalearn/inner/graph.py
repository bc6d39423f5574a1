"""Autograd's graphs: walked through, and searched for what cannot be differentiated twice."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any

from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.autograd.graph import Node, get_gradient_edge

__all__ = ["find_once_differentiable", "walk_graph"]

WRAPPER = once_differentiable(lambda ctx: None).__code__
"""The code of every backward that the decorator has wrapped."""


def walk_graph(end: Node | None, borders: Collection[Node | None] = ()) -> Iterator[Node]:
    """Each node of a graph once.

    Args:
        end: the last node of the graph; ``None`` for an empty one.
        borders: nodes that are left out, with what lies behind them.
    """
    left = [] if end is None else [end]
    seen = set(left)
    while left:
        node = left.pop()
        yield node
        following = {before for before, _ in node.next_functions if before is not None and before not in borders} - seen
        seen |= following
        left += following


def find_once_differentiable(
    end: Node | None, inputs: Iterable[Tensor], borders: Collection[Node | None] = ()
) -> str | None:
    """The name of an ``autograd.Function`` between these tensors and the end whose backward is ``once_differentiable``.

    Autograd takes its second derivative for 0, and raises only where it is the last operation of all.

    Args:
        end: the last node of the graph.
        inputs: the tensors that are differentiated by twice.
        borders: see :func:`walk_graph`.
    """
    starts = {get_gradient_edge(value).node for value in inputs if value.requires_grad}
    for node in walk_graph(end, borders):
        function: Any = getattr(type(node), "_forward_cls", None)
        backward = getattr(function, "backward", None)
        if getattr(backward, "__code__", None) is WRAPPER and not starts.isdisjoint(walk_graph(node, borders)):
            return str(function.__name__)
    return None
