"""How tasks are adapted: a learner, an update rule and a loss, for one task or for a stack of tasks.

The stacked form keeps a leading task axis on the adapted tensors and maps only the forward pass with
``torch.func.vmap``; gradients are taken by ordinary autograd outside of it. Both forms therefore share one inner loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import torch
from torch import Tensor
from torch.func import vmap

from metalearn.inner.ambient import twice_differentiable
from metalearn.inner.learner import Learner
from metalearn.inner.losses import Loss, compute_loss, loss_tensors, network_tensors
from metalearn.inner.memory import MemoryMode, gradient
from metalearn.inner.rules import Params, StepSizes, UpdateRule

__all__ = ["Adaptation", "Loss"]

Result = TypeVar("Result")


@dataclass(frozen=True)
class Adaptation:
    """The inner loop of an algorithm.

    Attributes:
        learner: which tensors adapt, and how examples become logits.
        rule: the update rule.
        loss: the loss of the inner objective and of the query set.
        memory: what is kept of each step for the meta-gradient.
        weight_decay: times the weights, added to the inner gradient once it is clipped; or the rule's own, see
            :meth:`UpdateRule.with_decay`.
        clip_norm: the largest norm of a task's inner gradient of the loss, over all its tensors; ``None`` for no bound.
        chunk: support examples whose gradient is taken at once; ``None`` for all.
        stacked: whether every tensor of a task carries a leading task axis.
        ways: how many of the network's outputs the loss sees, so that a task of fewer classes neither sees nor moves the
            others; ``None`` for all.
    """

    learner: Learner
    rule: UpdateRule
    loss: Loss
    memory: MemoryMode = "store"
    weight_decay: float = 0.0
    clip_norm: float | None = None
    chunk: int | None = None
    stacked: bool = False
    ways: int | None = None

    def __post_init__(self) -> None:
        if self.weight_decay:
            object.__setattr__(self, "rule", self.rule.with_decay(self.weight_decay))

    def outer(self) -> Params:
        """All tensors that the meta-gradient is taken with respect to: the network's and the loss's."""
        return {**self.learner.outer(), **loss_tensors(self.loss)}

    needs_features: ClassVar[bool] = False
    """Whether the inner loop is not made of the learner's outputs alone, but of what it encodes."""

    def encode(self, params: Params, support: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """What no inner step changes, see :meth:`Learner.encode`."""

        def run(support: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
            return self.learner.encode(network_tensors(params), support, query)

        return self._map(run)(support, query)

    def iterates(
        self, params: Params, support: Tensor, targets: Tensor, steps: int, step_sizes: StepSizes, order: int
    ) -> Iterator[Params]:
        """Yield the adapted tensors ``w_0, w_1, ..., w_steps`` of ``w_{j+1} = rule(w_j, grad L(w_j))``.

        Args:
            params: all tensors by name.
            support: the encoded support set.
            targets: its targets.
            steps: the number of inner steps.
            step_sizes: see :data:`metalearn.inner.rules.StepSizes`.
            order: 2 keeps the graph of the inner gradients (MAML); 1 treats them as constants (FOMAML); 0 keeps no graph at
                all (evaluation).
        """
        adapted, others = self.split(params)
        if self.stacked:
            adapted = {name: value.expand(len(support), *value.shape) for name, value in adapted.items()}
        if order == 0:
            adapted = _leaves(adapted)
        state = self.rule.start(adapted)
        yield adapted
        for step in range(steps):
            grads = self._gradient(adapted, others, support, targets, step, order)
            sizes = step_sizes[min(step, len(step_sizes) - 1)]
            adapted, state = self.rule.step(adapted, self._shape(adapted, grads), state, sizes)
            if order == 0:
                adapted = _leaves(adapted)
            yield adapted

    def query_logits(self, params: Params, adapted: Params, support: Tensor, query: Tensor, step: int) -> Tensor:
        """Outputs of the network after ``step`` inner steps for the encoded query set."""

        def run(adapted: Params, support: Tensor, query: Tensor) -> Tensor:
            return self.learner.query_logits(network_tensors({**params, **adapted}), support, query, step)

        return self._map(run)(adapted, support, query)

    def query_loss(self, params: Params, logits: Tensor, targets: Tensor) -> Tensor:
        """The query loss, a scalar, or ``[B]`` where tasks are stacked."""

        def run(logits: Tensor, targets: Tensor) -> Tensor:
            return self.task_loss(params, logits, targets)

        return self._map(run)(logits, targets)

    def task_loss(self, params: Params, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of one task's outputs ``[n, ...]``, those of its ways alone, in float32 where they are shorter."""
        return compute_loss(self.loss, params, outputs[:, : self.ways] if self.ways else outputs, targets)

    def split(self, params: Params) -> tuple[Params, Params]:
        """The tensors that the inner loop moves, and the others, those of the loss among them."""
        adapted = {name: value for name, value in network_tensors(params).items() if self.learner.adapts(name)}
        return adapted, {name: value for name, value in params.items() if name not in adapted}

    def _gradient(
        self, adapted: Params, others: Params, support: Tensor, targets: Tensor, step: int, order: int
    ) -> Params:
        """The gradient of the mean support loss; the sum over tasks, since no task's tensors are in another's loss."""
        names, other_names = list(adapted), list(others)

        def run(adapted: Params, others: Params, x: Tensor, y: Tensor) -> Tensor:
            outputs = self.learner.support_logits(network_tensors({**others, **adapted}), x, step)
            return self.task_loss(others, outputs, y)

        axis = 1 if self.stacked else 0
        count = support.shape[axis]
        size = self.chunk or count
        total: list[Tensor] | None = None
        for x, y in zip(support.split(size, axis), targets.split(size, axis), strict=True):

            def objective(values: Sequence[Tensor], rest: Sequence[Tensor], y: Tensor = y) -> Tensor:
                others = dict(zip(other_names, rest, strict=False))
                mapped = self._map(run, in_dims=(0, None, 0, 0))
                return mapped(dict(zip(names, values, strict=True)), others, rest[-1], y).sum()

            share = x.shape[axis] / count
            with twice_differentiable(order == 2):
                grads = gradient(objective, list(adapted.values()), [*others.values(), x], order, self.memory)
            if total is None and share == 1:
                total = list(grads)
            else:
                parts = [grad * share for grad in grads]
                total = parts if total is None else [a + b for a, b in zip(total, parts, strict=True)]
        assert total is not None
        return dict(zip(names, total, strict=True))

    def _shape(self, adapted: Params, grads: Params) -> Params:
        """What the rule steps along, as in torch: ``clip_grad_norm_`` first, then the decay that an optimiser's step adds."""
        if self.clip_norm is not None:
            grads = self._clip(grads, self.clip_norm)
        if self.weight_decay and not self.rule.decoupled:
            grads = {name: grad.add(adapted[name], alpha=self.weight_decay) for name, grad in grads.items()}
        return grads

    def _clip(self, grads: Params, bound: float) -> Params:
        """Times ``min(1, bound / (norm + 1e-6))``, as ``torch.nn.utils.clip_grad_norm_``."""
        first = 1 if self.stacked else 0
        of_each = [(grad * grad).sum(tuple(range(first, grad.ndim))) if grad.ndim > first else grad * grad
                   for grad in grads.values()]  # fmt: skip
        squares = torch.stack(of_each).sum(0)
        inside = (
            squares <= max(bound - 1e-6, 0.0) ** 2
        )  # there the root, which has no derivative at 0, is not asked for
        scale = torch.where(inside, 1.0, bound / (torch.where(inside, 1.0, squares).sqrt() + 1e-6)).clamp(max=1.0)
        return {name: grad * scale.view(-1, *(1,) * (grad.ndim - 1)) if first else grad * scale
                for name, grad in grads.items()}  # fmt: skip

    def _map(self, function: Callable[..., Result], in_dims: int | tuple[int | None, ...] = 0) -> Callable[..., Result]:
        return vmap(function, in_dims=in_dims, randomness="different") if self.stacked else function


def _leaves(params: Params) -> Params:
    return {name: value.detach().requires_grad_() for name, value in params.items()}
