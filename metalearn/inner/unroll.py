"""The inner loop: a few steps of an update rule, unrolled so that autograd can differentiate through them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from metalearn.inner.rules import Params, StepSizes, UpdateRule

__all__ = ["last", "unroll"]


def unroll(
    loss: Callable[[Params], Tensor],
    params: Params,
    steps: int,
    rule: UpdateRule,
    step_sizes: StepSizes,
    order: int = 2,
) -> Iterator[Params]:
    """Yield the inner iterates ``w_0 = params, w_1, ..., w_steps`` of ``w_{j+1} = rule(w_j, grad loss(w_j))``.

    Args:
        loss: the inner objective, a scalar. For several tasks at once, the sum over tasks: their parameters are disjoint.
        params: the initial values of the adapted tensors.
        steps: the number of inner steps.
        rule: the update rule.
        step_sizes: see :data:`metalearn.inner.rules.StepSizes`.
        order: 2 keeps the graph of the inner gradients (MAML); 1 treats them as constants (FOMAML); 0 keeps no graph at
            all (evaluation).
    """
    if order == 0:
        params = {name: value.detach().requires_grad_() for name, value in params.items()}
    yield params
    for step in range(steps):
        sizes = step_sizes[min(step, len(step_sizes) - 1)]
        grads = torch.autograd.grad(
            loss(params), list(params.values()), create_graph=order == 2, materialize_grads=True
        )
        params = rule(params, dict(zip(params, grads, strict=True)), sizes)
        if order == 0:
            params = {name: value.detach().requires_grad_() for name, value in params.items()}
        yield params


def last(iterates: Iterator[Params]) -> Params:
    """The final iterate; the others are let go as they come."""
    return deque(iterates, maxlen=1)[0]
