"""What operators do to memory: which values share it, who writes to it, and how values lie in it."""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Graph, GraphModule, Node

__all__ = ["Effects", "Layout", "UnfitForReplayError", "is_random", "list_calls"]


class UnfitForReplayError(Exception):
    """Why a graph cannot be replayed; ends in no one's hands but ours."""


class Layout(NamedTuple):
    """How a tensor lies in its memory."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype

    @classmethod
    def of(cls, value: Tensor) -> Layout:
        """That of a tensor."""
        return cls(tuple(value.shape), tuple(value.stride()), int(value.storage_offset()), value.dtype)


class Effects:
    """What a run of a graph shows.

    Args:
        module: the graph, and what it reads beside its inputs.
        inputs: values to run it with, all of them contiguous.

    Attributes:
        values: of every node, all of them still there.
        writers: for each memory that is written to, the nodes that do so, in their order.

    Raises:
        UnfitForReplayError: it writes to an input, or has values that are no plain tensors.
    """

    def __init__(self, module: GraphModule, inputs: list[Tensor]) -> None:
        self.values: dict[Node, Any] = {}
        self.writers: dict[int, list[Node]] = {}
        self._memory: dict[Node, frozenset[int]] = {}
        incoming = iter(inputs)
        outside: set[int] = set()
        for node in module.graph.nodes:
            if node.op == "output":
                continue
            if node.op == "placeholder":
                value: Any = next(incoming)
            elif node.op == "get_attr":
                value = getattr(module, str(node.target))
            else:
                args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), self.values.__getitem__)
                value = node.target(*args, **kwargs)
            self.values[node] = value
            self._memory[node] = frozenset(_list_memory(node, value))
            if node.op != "call_function":
                outside |= self._memory[node]
            for written in _list_written(node):
                for place in self._memory[written]:
                    self.writers.setdefault(place, []).append(node)
        if not outside.isdisjoint(self.writers):
            raise UnfitForReplayError("it writes to a tensor that is not its own")

    def memory(self, node: Node) -> frozenset[int]:
        """Where its values lie."""
        return self._memory[node]

    def layout(self, node: Node) -> Layout | None:
        """Of its value; ``None`` if it has several."""
        value = self.values[node]
        return Layout.of(value) if isinstance(value, Tensor) else None

    def is_written(self, node: Node) -> bool:
        """Whether its values lie where some node writes to."""
        return not self._memory[node].isdisjoint(self.writers)

    def is_view(self, node: Node) -> bool:
        """Whether it is its first argument, in another shape."""
        if node.op != "call_function" or not node.args or not isinstance(node.args[0], Node):
            return False
        layout, before = self.layout(node), self.layout(node.args[0])
        return (
            layout is not None and before is not None and layout.dtype == before.dtype
            and self._memory[node] == self._memory[node.args[0]] and bool(self._memory[node])
            and not _list_written(node) and len(node.all_input_nodes) == 1
        )  # fmt: skip

    def viewed(self, node: Node) -> Node | None:
        """What it is a view of; ``None`` if it is none."""
        base = node.args[0] if self.is_view(node) else None
        return base if isinstance(base, Node) else None

    def touched(self, node: Node) -> set[int]:
        """All written memory that it reads, writes or gives."""
        places = set(self._memory[node])
        for before in node.all_input_nodes:
            places |= self._memory[before]
        return places & self.writers.keys()


def is_random(node: Node) -> bool:
    """Whether it draws from a generator."""
    return isinstance(node.target, OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags


def _list_memory(node: Node, value: Any) -> list[int]:
    """The storages of a value."""
    if isinstance(value, (tuple, list)):
        return [place for part in value for place in _list_memory(node, part)]
    if value is None or isinstance(value, (bool, int, float)):
        return []
    if type(value) not in (Tensor, torch.nn.Parameter) or value.layout != torch.strided or value.is_complex():
        raise UnfitForReplayError(
            f"{node.target} gives {type(value).__name__}, which is no plain tensor of real numbers"
        )
    if value._is_zerotensor() or not value.untyped_storage().nbytes():
        return []
    return [value.untyped_storage().data_ptr()]


def _list_written(node: Node) -> list[Node]:
    """The arguments that it writes to."""
    if node.op != "call_function" or node.target is operator.getitem:
        return []
    if not isinstance(node.target, OpOverload):
        raise UnfitForReplayError(f"{node.target} is no operator of torch's")
    written: list[Node] = []
    for index, argument in enumerate(node.target._schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        value = node.args[index] if index < len(node.args) else node.kwargs.get(argument.name)
        torch.fx.node.map_arg(value, written.append)
    return written


def list_calls(graph: Graph) -> list[Node]:
    """All nodes that compute, in their order."""
    return [node for node in graph.nodes if node.op == "call_function"]
