"""What every inner step computes from ``x`` alone, such as features of the support set: reverse mode goes back through it once.

The graph of ``grad_y g(x, y_t)`` has a part that does not depend on ``y_t``. On one batch it has the same values in each step,
and so the same Jacobian ``C``. Its cotangents are therefore summed over the steps first, ``sum_t C' u_t = C' (sum_t u_t)``, where
plain reverse mode takes a product with each step's own copy.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from metalearn.bilevel.trees import Tree

__all__ = ["Steps"]

OF_Y, OF_X = 1, 2
"""What a node depends on, as bits."""

ROUNDS = 8
"""How far the border is moved towards ``x``: views of features are a few nodes long."""


class Steps:
    """The graphs of the inner steps at one ``x``.

    The steps share their part where all have the same batch, as one object, where their graphs are alike, and where nothing
    was drawn from torch's generators (dropout). Otherwise :meth:`pull` is plain reverse mode.
    """

    def __init__(self, x: Tensor) -> None:
        """Begin at a leaf ``x``."""
        self.x = x
        self._node = get_gradient_edge(x).node
        self._random = _random_state(x)
        self._batch: Tree = None
        self._alike = True
        self._pattern: list[tuple[type, int]] = []
        self._places: list[tuple[int, int]] = []
        self._edges: list[list[tuple[Node, int]]] = []

    def add(self, gradient: Tensor, y: Tensor, batch: Tree) -> None:
        """Take a step's gradient at ``y``, both with their graphs, and the batch that it was taken on."""
        first = not self._edges
        self._batch = batch if first else self._batch
        # without a batch the loss may draw one for itself
        self._alike = self._alike and batch is not None and batch is self._batch and gradient.grad_fn is not None
        if not self._alike:
            return
        assert gradient.grad_fn is not None
        nodes, reach = _walk(gradient.grad_fn, get_gradient_edge(y).node, self._node)
        pattern = [(type(node), reach[node]) for node in nodes]
        if first:
            self._pattern, self._places = pattern, _cut(nodes, reach)
        self._alike = pattern == self._pattern
        if self._alike:
            self._edges.append([(nodes[place], output) for place, output in self._places])

    def pull(self, end: Tensor, cotangent: Tensor) -> Tensor:
        """``d <end, cotangent> / dx``, of the last iterate."""
        if not end.requires_grad:
            return torch.zeros_like(self.x)
        deep = any(place > 0 for place, _ in self._places)  # place 0 is x itself
        if not (deep and self._alike and len(self._edges) > 1 and _equal(self._random, _random_state(self.x))):
            (found,) = torch.autograd.grad(end, self.x, cotangent, materialize_grads=True)
            return found.detach()
        # a loss may keep features for its next call: their edge is then that of many steps, and its cotangent their sum
        distinct = [list(dict.fromkeys(edges)) for edges in zip(*self._edges, strict=True)]
        flat = [GradientEdge(*edge) for edges in distinct for edge in edges]
        pulled = iter(torch.autograd.grad(end, flat, cotangent, allow_unused=True))
        sums = [_sum([next(pulled) for _ in edges]) for edges in distinct]
        reached = [(edges[-1], total) for edges, total in zip(distinct, sums, strict=True) if total is not None]
        if not reached:
            return torch.zeros_like(self.x)
        (found,) = torch.autograd.grad(
            [GradientEdge(*edge) for edge, _ in reached],
            self.x,
            [total for _, total in reached],
            materialize_grads=True,
        )
        return found.detach()


def _walk(root: Node, y: Node, x: Node) -> tuple[list[Node], dict[Node, int]]:
    """The nodes between a root and the two leaves, ``x`` first, each after those that it leads to; and what each depends on."""
    reach, nodes = {y: OF_Y, x: OF_X}, [x]
    stack: list[tuple[Node, list[Node] | None]] = [(root, None)]
    while stack:
        node, after = stack.pop()
        if after is not None:
            for each in after:
                reach[node] |= reach[each]
            nodes.append(node)
        elif node not in reach:
            reach[node] = 0
            after = [each for each, _ in node.next_functions if each is not None]
            stack.append((node, after))
            for each in after:
                if each not in reach:
                    stack.append((each, None))
    return nodes, reach


def _cut(nodes: list[Node], reach: dict[Node, int]) -> list[tuple[int, int]]:
    """Edges that part ``x`` from all nodes that depend on ``y``, none of them behind another: a node's place and its output.

    Where an edge leads to another one of the border, it is replaced by those that its node leads to. Empty where that does not
    soon end.
    """
    cut = dict.fromkeys(edge for node in nodes if reach[node] & OF_Y for edge in _next(node, reach))
    for _ in range(ROUNDS):
        border = {node for node, _ in cut}
        leads: set[Node] = set()  # to the border
        for node in nodes:
            if reach[node] == OF_X and any(after in border or after in leads for after, _ in _next(node, reach)):
                leads.add(node)
        above = [edge for edge in cut if edge[0] in leads]
        if not above:
            places = {node: place for place, node in enumerate(nodes)}
            return [(places[node], output) for node, output in cut]
        for edge in above:
            del cut[edge]
            cut.update(dict.fromkeys(_next(edge[0], reach)))
    return []


def _next(node: Node, reach: dict[Node, int]) -> list[tuple[Node, int]]:
    """The edges from a node to those of ``x`` alone."""
    return [(after, output) for after, output in node.next_functions if after is not None and reach[after] == OF_X]


def _sum(tensors: Sequence[Tensor | None]) -> Tensor | None:
    known = [tensor for tensor in tensors if tensor is not None]
    return sum(known[1:], known[0]) if known else None


def _random_state(like: Tensor) -> list[Tensor]:
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(like.device)] if like.is_cuda else states


def _equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(first, second) for first, second in zip(a, b, strict=True))
