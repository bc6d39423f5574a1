"""The gradient of the support loss, all examples at once or a few at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

from torch import Tensor

from metalearn.inner.adaptation import Adaptation, InnerMethod
from metalearn.inner.ambient import current, twice_differentiable
from metalearn.inner.memory import MemoryMode, gradient
from metalearn.inner.rules import Params

__all__ = ["StepwiseMethod", "SupportGradient", "Term", "as_leaves"]

Setting = Mapping[str, Tensor | float]

RECORDED: tuple[MemoryMode, ...] = ("store", "remat")
"""Memory modes whose gradients may be those of a recorded list of operators."""


class Term(Protocol):
    """What is added to the support loss of a task; a pure function."""

    def tensors(self, setting: Setting) -> Params:
        """What of a step's setting it is a function of."""

    def __call__(self, own: Params, adapted: Params, outputs: Tensor, targets: Tensor, loss: Tensor) -> Tensor:
        """A scalar of its own tensors, the weights of the task, its outputs ``[n, ...]``, targets and support loss."""


@dataclass(frozen=True)
class SupportGradient:
    """Takes the gradient of the mean support loss by the tensors that adapt.

    Attributes:
        memory: what is kept for the meta-gradient.
        chunk: examples whose gradient is taken at once; ``None`` for all.
        term: what is added to the loss; ``None`` for nothing.
    """

    memory: MemoryMode = "store"
    chunk: int | None = None
    term: Term | None = None

    def take(
        self,
        adaptation: Adaptation,
        adapted: Params,
        others: Params,
        support: Tensor,
        targets: Tensor,
        step: int,
        order: int,
        setting: Setting | None = None,
    ) -> Params:
        """The gradient, of each task where tasks are stacked, since no task's tensors are in another's loss.

        Args:
            adaptation: the inner loop.
            adapted: the tensors that move.
            others: all others.
            support: the encoded support set.
            targets: its targets.
            step: the inner steps behind ``adapted``.
            order: see :meth:`Adaptation.iterates`.
            setting: what the solver hands to this step, of which a term takes its tensors.
        """
        own = {} if self.term is None else self.term.tensors(setting or {})
        names, other_names, own_names = list(adapted), list(others), list(own)
        axis = 1 if adaptation.stacked else 0
        count = support.shape[axis]
        size = self.chunk or count
        total: list[Tensor] | None = None
        for x, y in zip(support.split(size, axis), targets.split(size, axis), strict=True):

            def objective(values: Sequence[Tensor], rest: Sequence[Tensor]) -> Tensor:
                moved = dict(zip(names, values, strict=True))
                fixed = dict(zip(other_names, rest, strict=False))
                of_term = dict(zip(own_names, rest[len(other_names) :], strict=False))
                term = None if self.term is None else partial(self.term, of_term)
                return adaptation.support_loss(moved, fixed, rest[-2], rest[-1], step, term).sum()

            share = x.shape[axis] / count
            inputs = [*others.values(), *own.values(), x, y]
            recorder = current().recorder if self.memory in RECORDED else None
            with twice_differentiable(order == 2):
                if recorder is None:
                    grads = gradient(objective, list(adapted.values()), inputs, order, self.memory)
                else:
                    state = adaptation, self.term, (*names, *other_names)
                    grads = recorder.gradient(objective, list(adapted.values()), inputs, order, self.memory, *state)
            if total is None and share == 1:
                total = list(grads)
            else:
                parts = [grad * share for grad in grads]
                total = parts if total is None else [a + b for a, b in zip(total, parts, strict=True)]
        assert total is not None
        return dict(zip(names, total, strict=True))


class StepwiseMethod(InnerMethod):
    """A method that takes steps along the gradient of the support loss, in any memory mode; a frozen dataclass.

    Attributes:
        gradient: takes that gradient.
    """

    gradient: SupportGradient

    @property
    def stepwise(self) -> StepwiseMethod:
        """The method itself."""
        return self

    def slope(
        self, adaptation: Adaptation, params: Params, adapted: Params, support: Tensor, targets: Tensor, step: int,
        settings: Sequence[Setting],
    ) -> Params:  # fmt: skip
        """The gradient of the inner objective at ``adapted``, with its graph to these tensors, in whatever memory mode.

        Args:
            adaptation: the inner loop.
            params: all tensors by name.
            adapted: the tensors that move, where they are.
            support: the encoded support set.
            targets: its targets.
            step: the inner steps behind ``adapted``.
            settings: what the solver hands to the method.
        """
        _, others = adaptation.split(params)
        setting = settings[min(step, len(settings) - 1)]
        take = replace(self.gradient, memory="store").take
        return take(adaptation, adapted, others, support, targets, step, 2, setting)

    @property
    def chunk(self) -> int | None:  # type: ignore[override]
        """Support examples whose gradient is taken at once."""
        return self.gradient.chunk

    @property
    def memory(self) -> MemoryMode:
        """What is kept of each step for the meta-gradient."""
        return self.gradient.memory

    def with_memory(self, memory: MemoryMode) -> InnerMethod:
        """The same method in another memory mode."""
        return self._varied(memory=memory)

    def with_term(self, term: Term) -> InnerMethod:
        """The same method on the support loss plus this."""
        return self._varied(term=term)

    def _varied(self, **changes: Any) -> InnerMethod:
        method: Any = self
        changed: InnerMethod = replace(method, gradient=replace(self.gradient, **changes))
        return changed


def as_leaves(params: Params) -> Params:
    """The tensors without their graph, each a leaf that asks for a gradient."""
    return {name: value.detach().requires_grad_() for name, value in params.items()}
