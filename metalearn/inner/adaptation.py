"""How tasks are adapted: a learner, a loss and a method, for one task or for a stack of tasks.

The stacked form keeps a leading task axis on the adapted tensors and maps only the forward pass with
``torch.func.vmap``; gradients are taken by ordinary autograd outside of it. Both forms therefore share one inner loop.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from torch import Tensor
from torch.func import vmap

from metalearn.inner.ambient import remembering
from metalearn.inner.learner import Learner
from metalearn.inner.losses import Loss, compute_loss, loss_tensors, network_tensors
from metalearn.inner.memory import MemoryMode
from metalearn.inner.rules import Params

__all__ = ["Adaptation", "InnerMethod", "Settings"]

Result = TypeVar("Result")

Settings = Sequence[Mapping[str, Tensor | float]]
"""What a solver hands to its method, by name, for every inner step; the last entry serves all later steps. Gradient steps have
the step size of each tensor here, a ridge regression its weight and its scale."""


class InnerMethod(ABC):
    """How the inner problem of a task is solved, as a pure function: nothing of it is written while tasks are adapted.

    Attributes:
        batches: whether it may run on tensors with a leading task axis.
        needs_features: whether it takes what the learner encodes, and not the learner's outputs alone.
        fits_one_hot: whether it fits outputs to one-hot vectors, whatever the loss of the queries.
        loss_order: up to which order training differentiates the loss.
        chunk: support examples whose gradient is taken at once; ``None`` for all.

    Example:
        >>> from metalearn import ANIL, MLP
        >>> from metalearn.inner import InnerMethod
        >>> module = ANIL(MLP(outputs=5, inputs=8), head_solver="ridge")
        >>> method = module.solver.method()
        >>> isinstance(method, InnerMethod), method.needs_features
        (True, True)
    """

    batches: bool = True
    needs_features: bool = False
    fits_one_hot: bool = False
    loss_order: int = 2
    chunk: int | None = None

    @property
    def memory(self) -> MemoryMode:
        """What is kept of each step for the meta-gradient."""
        return "store"

    @property
    def stepwise(self) -> InnerMethod | None:
        """What takes gradient steps, a ``StepwiseMethod``; ``None`` where no step is taken."""
        return None

    def with_memory(self, memory: MemoryMode) -> InnerMethod:
        """The same method in another memory mode: itself, if it has but one."""
        return self

    def note_query_loss(self, losses: Tensor) -> None:
        """Take note of query losses, a scalar or ``[B]``, before they are differentiated."""
        return

    @abstractmethod
    def iterates(
        self,
        adaptation: Adaptation,
        params: Params,
        support: Tensor,
        targets: Tensor,
        steps: int,
        settings: Settings,
        order: int,
    ) -> Iterator[Params]:
        """Yield the adapted tensors ``w_0, w_1, ..., w_steps``; see :meth:`Adaptation.iterates`."""


@dataclass(frozen=True)
class Adaptation:
    """The inner loop of an algorithm.

    Attributes:
        learner: which tensors adapt, and how examples become logits.
        loss: the loss of the inner objective and of the query set.
        method: how the inner problem is solved.
        stacked: whether every tensor of a task carries a leading task axis.
        ways: how many of the network's outputs the loss sees, so that a task of fewer classes neither sees nor moves the
            others; ``None`` for all.
        begun: tensors that start anew in each of the tasks at hand, where they start; they have the task axis, if there is one.

    Example:
        >>> import torch
        >>> from metalearn import MLP
        >>> from metalearn.inner import SGD, Adaptation, GradientSteps, InnerLoop, Learner, TaskNorm
        >>> network = MLP(hidden=[])
        >>> learner = Learner(network, TaskNorm(network, "transductive"))
        >>> solver = GradientSteps(InnerLoop(inner_steps=2, inner_lr=0.1), SGD(), learner)
        >>> adaptation = Adaptation(learner, torch.nn.functional.mse_loss, solver.method())
        >>> x, params, sizes = torch.randn(4, 1), learner.moving(), solver.settings(learner.moving())
        >>> [sorted(step) for step in adaptation.iterates(params, x, 2 * x, 1, sizes, order=2)]
        [['head.bias', 'head.weight'], ['head.bias', 'head.weight']]
    """

    learner: Learner
    loss: Loss
    method: InnerMethod
    stacked: bool = False
    ways: int | None = None
    begun: Params = field(default_factory=dict)

    @property
    def memory(self) -> MemoryMode:
        """What is kept of each inner step for the meta-gradient."""
        return self.method.memory

    def with_memory(self, memory: MemoryMode) -> Adaptation:
        """The same inner loop in another memory mode."""
        return replace(self, method=self.method.with_memory(memory))

    def outer(self) -> Params:
        """All tensors that the meta-gradient is taken with respect to: the network's and the loss's."""
        return {**self.learner.outer(), **loss_tensors(self.loss)}

    def encode(self, params: Params, support: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """What no inner step changes, see :meth:`Learner.encode`."""

        def run(support: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
            return self.learner.encode(network_tensors(params), support, query)

        return self.map(run)(support, query)

    def iterates(
        self, params: Params, support: Tensor, targets: Tensor, steps: int, settings: Settings, order: int
    ) -> Iterator[Params]:
        """Yield the adapted tensors ``w_0, w_1, ..., w_steps``.

        Args:
            params: all tensors by name.
            support: the encoded support set.
            targets: its targets.
            steps: the number of inner steps.
            settings: what the solver hands to the method.
            order: 2 keeps the graph of the inner gradients (MAML); 1 treats them as constants (FOMAML); 0 keeps no graph at
                all (evaluation).
        """
        begun = self.begin(params, support, targets, order)
        adaptation = replace(self, begun=begun) if begun else self
        return self.method.iterates(adaptation, params, support, targets, steps, settings, order)

    def begin(self, params: Params, support: Tensor, targets: Tensor, order: int = 0) -> Params:
        """Where the tensors start that start anew in each task; with a graph to ``params`` unless ``order`` is 0."""
        if self.learner.adapter is None:
            return {}

        def run(support: Tensor, targets: Tensor) -> Params:
            return self.learner.begin(network_tensors(params), support, targets, self.ways)

        with torch.set_grad_enabled(order > 0 and torch.is_grad_enabled()):
            begun = self.map(run)(support, targets)
        # what starts at a constant is a leaf of its own, since the inner loop differentiates by it
        return {
            name: value if value.requires_grad else value.detach().requires_grad_() for name, value in begun.items()
        }

    def support_loss(
        self,
        adapted: Params,
        others: Params,
        support: Tensor,
        targets: Tensor,
        step: int,
        term: Callable[[Params, Tensor, Tensor, Tensor], Tensor] | None = None,
    ) -> Tensor:
        """The support loss after ``step`` inner steps, a scalar, or ``[B]`` where tasks are stacked.

        Args:
            adapted: the tensors that the inner loop moves.
            others: all others.
            support: the encoded support set, or a part of it.
            targets: its targets.
            step: the inner steps behind ``adapted``.
            term: ``term(adapted, outputs, targets, loss)`` is added to the loss of a task.
        """

        def run(adapted: Params, others: Params, x: Tensor, y: Tensor) -> Tensor:
            outputs = self.learner.support_logits(network_tensors({**others, **adapted}), x, step)
            loss = self.task_loss(others, outputs, y)
            return loss if term is None else loss + term(adapted, self._cut(outputs), y, loss)

        return self.map(run, in_dims=(0, None, 0, 0))(adapted, others, support, targets)

    def query_logits(self, params: Params, adapted: Params, support: Tensor, query: Tensor, step: int) -> Tensor:
        """Outputs of the network after ``step`` inner steps for the encoded query set."""

        def run(adapted: Params, support: Tensor, query: Tensor) -> Tensor:
            return self.learner.query_logits(network_tensors({**params, **adapted}), support, query, step)

        with remembering(False):  # a query set is large, and is seen once
            return self.map(run)(adapted, support, query)

    def query_loss(self, params: Params, logits: Tensor, targets: Tensor) -> Tensor:
        """The query loss, a scalar, or ``[B]`` where tasks are stacked."""

        def run(logits: Tensor, targets: Tensor) -> Tensor:
            return self.task_loss(params, logits, targets)

        losses = self.map(run)(logits, targets)
        self.method.note_query_loss(losses)
        return losses

    def task_loss(self, params: Params, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of one task's outputs ``[n, ...]``, those of its ways alone, in float32 where they are shorter."""
        return compute_loss(self.loss, params, self._cut(outputs), targets)

    def _cut(self, outputs: Tensor) -> Tensor:
        """The outputs of the task's ways alone."""
        return outputs[:, : self.ways] if self.ways else outputs

    def split(self, params: Params) -> tuple[Params, Params]:
        """The tensors that the inner loop moves, and the others, those of the loss among them."""
        adapted = {name: value for name, value in network_tensors(params).items() if self.learner.adapts(name)}
        return adapted, {name: value for name, value in params.items() if name not in adapted}

    def start(self, params: Params, tasks: int) -> tuple[Params, Params]:
        """As :meth:`split`; where tasks are stacked, what moves has a task axis of length ``tasks``."""
        adapted, others = self.split(params)
        if self.stacked:
            adapted = {name: value.expand(tasks, *value.shape) for name, value in adapted.items()}
        elif (
            self.begun
        ):  # what starts at a function of the others is a tensor of its own: inner gradients do not go that way
            adapted = {name: value.view_as(value) for name, value in adapted.items()}
        return adapted | self.begun, others

    def map(self, function: Callable[..., Result], in_dims: int | tuple[int | None, ...] = 0) -> Callable[..., Result]:
        """The same function, over the task axis where there is one."""
        return vmap(function, in_dims=in_dims, randomness="different") if self.stacked else function
