"""A list of operators as one Python function."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

__all__ = ["Function", "make_function"]

Function = Callable[..., tuple[Tensor, ...]]

aten = torch.ops.aten

QUICK: dict[Any, Any] = {
    aten.add.Tensor: torch.add, aten.sub.Tensor: torch.sub, aten.mul.Tensor: torch.mul, aten.div.Tensor: torch.div,
    aten.neg.default: torch.neg, aten.bmm.default: torch.bmm, aten.mm.default: torch.mm, aten.view.default: Tensor.view,
    aten.permute.default: torch.permute, aten.transpose.int: torch.transpose, aten.unsqueeze.default: torch.unsqueeze,
    aten.squeeze.dim: torch.squeeze, aten.expand.default: Tensor.expand, aten.select.int: torch.select,
    aten.as_strided.default: torch.as_strided, aten.stack.default: torch.stack, aten.cat.default: torch.cat,
    aten.where.self: torch.where, aten.rsqrt.default: torch.rsqrt, aten.exp.default: torch.exp,
    aten.add_.Tensor: Tensor.add_, aten.copy_.default: Tensor.copy_, aten.addcmul.default: torch.addcmul,
    aten.index_select.default: torch.index_select, aten.mul.Scalar: torch.mul, aten.div.Scalar: torch.div,
}  # fmt: skip
"""Python's own names of some overloads, which are called in half the time."""


def make_function(
    module: GraphModule, calls: Sequence[Node], inputs: Sequence[Node], outputs: Sequence[Node]
) -> Function:
    """A function of the inputs' values that computes the nodes, and returns the outputs' values.

    Args:
        module: holds the tensors that the nodes read beside the inputs.
        calls: the nodes, in an order in which each stands after what it reads.
        inputs: nodes whose values are passed in.
        outputs: nodes whose values are returned.
    """
    names: dict[Node, str] = {}
    bound: dict[str, Any] = {}

    def write(value: Any) -> str:
        if isinstance(value, Node):
            if value not in names and value.op == "get_attr":
                names[value] = f"held{len(bound)}"
                bound[names[value]] = getattr(module, str(value.target))
            return names[value]
        if isinstance(value, (list, tuple)):
            return "(" + "".join(f"{write(part)}, " for part in value) + ")"
        if value is None or isinstance(value, (bool, int)):
            return repr(value)
        name = f"held{len(bound)}"
        bound[name] = value
        return name

    for index, node in enumerate(inputs):
        names[node] = f"in{index}"
    last = _find_last_uses(calls, outputs)
    lines = [f"def run({', '.join(names[node] for node in inputs)}):"]
    for index, node in enumerate(calls):
        arguments = [write(value) for value in node.args]
        arguments += [f"{key}={write(value)}" for key, value in node.kwargs.items()]
        if node.target is operator.getitem:
            expression = f"{arguments[0]}[{arguments[1]}]"
        else:
            expression = f"{write(_choose(node))}({', '.join(arguments)})"
        names[node] = f"v{index}"
        lines.append(f"    {names[node]} = {expression}")
        gone = [names[n] for n in last.get(node, ()) if n in names and n.op == "call_function"]
        if gone:
            lines.append(f"    del {', '.join(gone)}")
    lines.append(f"    return {write(tuple(outputs))}")
    exec("\n".join(lines), bound)  # of operators, names that are ours, and whole numbers alone
    function: Function = bound.pop("run")
    return function


def _choose(node: Node) -> Any:
    """What is called."""
    if not node.kwargs and node.target in QUICK:
        return QUICK[node.target]
    return getattr(node.target, "_op", node.target)


def _find_last_uses(calls: Sequence[Node], outputs: Sequence[Node]) -> dict[Node, list[Node]]:
    """For each node those values that nothing reads after it."""
    kept, seen = set(outputs), set()
    last: dict[Node, list[Node]] = {}
    for node in reversed(calls):
        for value in (node, *node.all_input_nodes):
            if value not in seen and value not in kept:
                seen.add(value)
                last.setdefault(node, []).append(value)
    return last
