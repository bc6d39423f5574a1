"""The operators of an inner gradient and of its product with a cotangent, as one graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from metalearn.inner.ambient import asking, remembering
from metalearn.inner.memory import Objective

__all__ = ["Traced", "trace"]


class Traced(NamedTuple):
    """What was traced.

    Attributes:
        module: holds the tensors that the graph reads beside its inputs.
        adapted: inputs that the inner loop moves.
        others: further inputs of the objective; the last ones are the support set and its targets.
        cotangents: inputs of the product.
        grads: the inner gradient.
        products: its products with the cotangents: for all of ``adapted``, and for those others that were asked for.
    """

    module: GraphModule
    adapted: list[Node]
    others: list[Node]
    cotangents: list[Node]
    grads: list[Node]
    products: list[Node]

    @property
    def graph(self) -> Graph:
        """The operators, in their order."""
        return self.module.graph


def trace(
    objective: Objective, adapted: Sequence[Tensor], others: Sequence[Tensor], wanted: Sequence[bool] | None
) -> Traced:
    """Trace the gradient of ``objective`` by ``adapted``, and the products that a backward pass through it takes.

    Args:
        objective: see :data:`Objective`; a scalar.
        adapted: values to trace with.
        others: as well.
        wanted: whether there is a product for each of ``others``; ``None`` for no product at all.
    """
    count, rest = len(adapted), len(others)

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            moved = [value.detach().requires_grad_() for value in inputs[:count]]
            fixed = [
                value.detach().requires_grad_(bool(wanted and wanted[index]))
                for index, value in enumerate(inputs[count : count + rest])
            ]
            grads = torch.autograd.grad(
                objective(moved, fixed), moved, create_graph=wanted is not None, materialize_grads=True
            )
            if wanted is None:
                return tuple(grad.detach() for grad in grads)
            by = [*moved, *(value for value in fixed if value.requires_grad)]
            pairs = [(g, c) for g, c in zip(grads, inputs[count + rest :], strict=True) if g.requires_grad]
            products = (
                torch.autograd.grad([g for g, _ in pairs], by, [c for _, c in pairs], materialize_grads=True)
                if pairs
                else [torch.zeros_like(value) for value in by]
            )
        return tuple(value.detach() for value in (*grads, *products))

    cotangents = [] if wanted is None else [torch.zeros_like(value) for value in adapted]
    with torch.no_grad(), remembering(False), asking(False):
        module = make_fx(run)(*(value.detach() for value in (*adapted, *others)), *cotangents)
    inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    (outputs,) = next(node for node in module.graph.nodes if node.op == "output").args
    return Traced(
        module, inputs[:count], inputs[count : count + rest], inputs[count + rest :],
        list(outputs[:count]), list(outputs[count:]),
    )  # fmt: skip
