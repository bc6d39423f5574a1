"""The gradient of the inner loss, and what is kept of it until the meta-gradient is taken: the memory modes.

``store`` keeps the graph of every inner step. ``remat`` keeps the inner iterates alone and recomputes a step when the backward
pass comes to it. ``mixed`` keeps as little, and computes the step's Hessian-vector product by forward-over-reverse
differentiation (MixFlow-MG, arXiv 2505.00793). Let ``u`` be the cotangent of ``g(w, t) = grad_w L(w, t)``. Second derivatives
commute, so that ``u' dg/dw`` and ``u' dg/dt`` are the derivative of ``grad_(w, t) L`` along ``u`` in ``w``.
"""

from __future__ import annotations

import contextlib
import contextvars
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from metalearn.inner.ambient import current, own_kernels, recording
from metalearn.inner.generators import drawing_from, read_generators

__all__ = ["MEMORY_MODES", "MemoryMode", "Objective", "gradient"]

MemoryMode = Literal["store", "remat", "mixed"]
MEMORY_MODES: tuple[str, ...] = get_args(MemoryMode)

Objective = Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]
"""``objective(adapted, others) -> scalar``, the inner loss as a function of the adapted tensors and of all others that it
may be differentiated by."""


def gradient(
    objective: Objective, adapted: Sequence[Tensor], others: Sequence[Tensor], order: int, memory: MemoryMode
) -> tuple[Tensor, ...]:
    """The gradient of ``objective`` with respect to ``adapted``.

    Args:
        objective: the inner loss.
        adapted: the tensors that the inner loop moves.
        others: further tensors that the meta-gradient reaches through the inner loss, such as features.
        order: 2 to let the meta-gradient pass through; below that the gradients are constants.
        memory: what is kept for it.
    """
    if order == 2 and memory != "store":
        return _Recomputed.apply(objective, memory, len(adapted), *adapted, *others)
    grads = torch.autograd.grad(
        objective(adapted, others), list(adapted), create_graph=order == 2, materialize_grads=True
    )
    return grads if order == 2 else tuple(grad.detach() for grad in grads)


class _Recomputed(torch.autograd.Function):
    """The gradient, of which nothing but the inputs is kept."""

    @staticmethod
    def forward(ctx: Any, objective: Objective, memory: MemoryMode, count: int, *tensors: Tensor) -> Any:
        ctx.objective, ctx.memory, ctx.count = objective, memory, count
        ctx.save_for_backward(*tensors)
        ctx.random = read_generators(tensors[0])
        ctx.context = contextvars.copy_context()  # on a GPU the backward pass runs in a thread of autograd's own
        with torch.enable_grad():
            adapted = [tensor.detach().requires_grad_() for tensor in tensors[:count]]
            loss = objective(adapted, [tensor.detach() for tensor in tensors[count:]])
            return torch.autograd.grad(loss, adapted, materialize_grads=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
        tensors, wanted = ctx.saved_tensors, ctx.needs_input_grad[3:]
        with torch.enable_grad(), drawing_from(ctx.random):
            product = _mixed_product if ctx.memory == "mixed" else _reverse_product
            products = ctx.context.run(_unrecorded, product, ctx.objective, tensors, ctx.count, wanted, cotangents)
        return None, None, None, *products


def _unrecorded(function: Callable[..., list[Tensor | None]], *args: Any) -> list[Tensor | None]:
    mode = current().answering or contextlib.nullcontext()
    with recording(False), mode:
        return function(*args)


def _reverse_product(
    objective: Objective, tensors: Sequence[Tensor], count: int, wanted: Sequence[bool], cotangents: Sequence[Tensor]
) -> list[Tensor | None]:
    leaves = [t.detach().requires_grad_(w or i < count) for i, (t, w) in enumerate(zip(tensors, wanted, strict=True))]
    grads = torch.autograd.grad(
        objective(leaves[:count], leaves[count:]), leaves[:count], create_graph=True, materialize_grads=True
    )
    # a gradient that is linear in nothing has no graph
    pairs = [(g, c) for g, c in zip(grads, cotangents, strict=True) if g.requires_grad]
    chosen = [leaf for leaf, want in zip(leaves, wanted, strict=True) if want]
    products = iter(
        torch.autograd.grad([g for g, _ in pairs], chosen, [c for _, c in pairs], materialize_grads=True)
        if pairs
        else [torch.zeros_like(leaf) for leaf in chosen]
    )
    return [next(products) if want else None for want in wanted]


def _mixed_product(
    objective: Objective, tensors: Sequence[Tensor], count: int, wanted: Sequence[bool], cotangents: Sequence[Tensor]
) -> list[Tensor | None]:
    moving = [index for index, want in enumerate(wanted) if want]

    def first(adapted: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        def loss(chosen: tuple[Tensor, ...]) -> Tensor:
            inputs = [*adapted, *tensors[count:]]
            for index, value in zip(moving, chosen, strict=True):
                inputs[index] = value
            return objective(inputs[:count], inputs[count:])

        values = tuple(adapted[index] if index < count else tensors[index].detach() for index in moving)
        grads: tuple[Tensor, ...] = torch.func.grad(loss)(values)
        return grads

    _load_forward_mode()
    start = tuple(tensor.detach().contiguous() for tensor in tensors[:count])  # of its own, also if expanded over tasks
    with own_kernels():
        along = torch.func.jvp(first, (start,), (tuple(cotangents),))[1]
    products = iter(along)
    return [next(products) if want else None for want in wanted]


@cache
def _load_forward_mode() -> None:
    """Let torch build its forward-mode tables, whose first use warns of something that torch itself has deprecated."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`torch.jit.script")
        torch.func.jvp(torch.sin, (torch.zeros(1),), (torch.zeros(1),))
