"""How tasks are adapted: a learner, an update rule and a loss, for one task or for a stack of tasks.

The stacked form keeps a leading task axis on the adapted tensors and maps only the forward pass with
``torch.func.vmap``; gradients are taken by ordinary autograd outside of it. Both forms therefore share one inner loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor
from torch.func import vmap

from metalearn.inner.learner import Learner
from metalearn.inner.rules import Params, StepSizes, UpdateRule
from metalearn.inner.unroll import unroll

__all__ = ["Adaptation", "Loss"]

Result = TypeVar("Result")
Loss = Callable[[Tensor, Tensor], Tensor]
"""``loss(outputs [n, ...], targets [n, ...]) -> scalar``, a mean over the ``n`` examples."""


@dataclass(frozen=True)
class Adaptation:
    """The inner loop of an algorithm.

    Attributes:
        learner: which tensors adapt, and how examples become logits.
        rule: the update rule.
        loss: the loss of the inner objective and of the query set.
        stacked: whether every tensor of a task carries a leading task axis.
    """

    learner: Learner
    rule: UpdateRule
    loss: Loss
    stacked: bool = False

    def encode(self, params: Params, support: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """What no inner step changes, see :meth:`Learner.encode`."""

        def run(support: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
            return self.learner.encode(params, support, query, vectorized=self.stacked)

        return self._map(run)(support, query)

    def iterates(
        self, params: Params, support: Tensor, targets: Tensor, steps: int, step_sizes: StepSizes, order: int
    ) -> Iterator[Params]:
        """Yield the adapted tensors after 0, 1, ..., ``steps`` inner steps on the encoded support set."""
        adapted = {name: value for name, value in params.items() if self.learner.adapts(name)}
        if self.stacked:
            adapted = {name: value.expand(len(support), *value.shape) for name, value in adapted.items()}

        def run(adapted: Params, support: Tensor, targets: Tensor) -> Tensor:
            logits = self.learner.support_logits({**params, **adapted}, support, vectorized=self.stacked)
            return self.loss(logits, targets)

        def objective(adapted: Params) -> Tensor:
            return self._map(run)(adapted, support, targets).sum()

        return unroll(objective, adapted, steps, self.rule, step_sizes, order)

    def query_logits(self, params: Params, adapted: Params, support: Tensor, query: Tensor) -> Tensor:
        """Outputs of the adapted network for the encoded query set."""

        def run(adapted: Params, support: Tensor, query: Tensor) -> Tensor:
            return self.learner.query_logits({**params, **adapted}, support, query, vectorized=self.stacked)

        return self._map(run)(adapted, support, query)

    def query_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The query loss, a scalar, or ``[B]`` where tasks are stacked."""
        return self._map(self.loss)(logits, targets)

    def _map(self, function: Callable[..., Result]) -> Callable[..., Result]:
        return vmap(function, randomness="different") if self.stacked else function
