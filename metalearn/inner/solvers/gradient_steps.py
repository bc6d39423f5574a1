"""The inner problem is not solved, but a few gradient steps are taken (MAML, ANIL)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from metalearn.errors import ConfigError
from metalearn.inner.adaptation import Adaptation, InnerMethod, Settings
from metalearn.inner.inner_loop import InnerLoop
from metalearn.inner.learner import Learner
from metalearn.inner.rules import RULES, Params, UpdateRule
from metalearn.inner.solvers.base import TaskSolver
from metalearn.inner.step_sizes import InnerStepSizes
from metalearn.inner.support_gradient import StepwiseMethod, SupportGradient, as_leaves

__all__ = ["GradientMethod", "GradientSteps"]


@dataclass(frozen=True)
class GradientMethod(StepwiseMethod):
    """``w_{j+1} = rule(w_j, grad L(w_j))`` with ``L`` the support loss.

    Attributes:
        rule: the update rule.
        gradient: takes ``grad L``.
        weight_decay: times the weights, added to the inner gradient once it is clipped; or the rule's own, see
            :meth:`UpdateRule.with_decay`.
        clip_norm: the largest norm of a task's inner gradient of the loss, over all its tensors; ``None`` for no bound.
    """

    rule: UpdateRule
    gradient: SupportGradient = SupportGradient()  # noqa: RUF009  # frozen
    weight_decay: float = 0.0
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        if self.weight_decay:
            object.__setattr__(self, "rule", self.rule.with_decay(self.weight_decay))

    @property
    def batches(self) -> bool:  # type: ignore[override]
        """Whether the rule may run on tensors with a leading task axis."""
        return self.rule.batches

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
        """Yield ``w_0, w_1, ..., w_steps``; ``settings`` hold the step size of each tensor."""
        adapted, others = adaptation.start(params, len(support))
        if order == 0:
            adapted = as_leaves(adapted)
        state = self.rule.start(adapted)
        yield adapted
        for step in range(steps):
            sizes = settings[min(step, len(settings) - 1)]
            grads = self.gradient.take(adaptation, adapted, others, support, targets, step, order, sizes)
            direction = self._shape(adapted, grads, adaptation.stacked)
            adapted, state = self.rule.step(adapted, direction, state, sizes)
            if order == 0:
                adapted = as_leaves(adapted)
            yield adapted

    def slope(
        self, adaptation: Adaptation, params: Params, adapted: Params, support: Tensor, targets: Tensor, step: int,
        settings: Settings,
    ) -> Params:  # fmt: skip
        """With the weight decay that is a part of the objective."""
        grads = super().slope(adaptation, params, adapted, support, targets, step, settings)
        if self.weight_decay and not self.rule.decoupled:
            grads = {name: grad.add(adapted[name], alpha=self.weight_decay) for name, grad in grads.items()}
        return grads

    def _shape(self, adapted: Params, grads: Params, stacked: bool) -> Params:
        """What the rule steps along, as in torch: ``clip_grad_norm_`` first, then the decay that an optimiser's step adds."""
        if self.clip_norm is not None:
            grads = _clip(grads, self.clip_norm, stacked)
        if self.weight_decay and not self.rule.decoupled:
            grads = {name: grad.add(adapted[name], alpha=self.weight_decay) for name, grad in grads.items()}
        return grads


class GradientSteps(TaskSolver):
    """Takes gradient steps, whose sizes may be learned.

    Args:
        options: the options of the inner loop.
        rule: the update rule.
        learner: says which tensors adapt.

    Attributes:
        step_sizes: the sizes of every step for every tensor.

    Raises:
        ConfigError: the rule cannot keep so little memory, or the step sizes do not fit the tensors.

    Example:
        >>> from metalearn import MLP
        >>> from metalearn.inner import SGD, GradientSteps, InnerLoop, Learner, TaskNorm
        >>> network = MLP(hidden=[])
        >>> learner = Learner(network, TaskNorm(network, "transductive"))
        >>> solver = GradientSteps(InnerLoop(inner_steps=2, inner_lr=0.1), SGD(), learner)
        >>> solver.settings(learner.moving())[0]
        {'head.weight': 0.1, 'head.bias': 0.1}
    """

    def __init__(self, options: InnerLoop, rule: UpdateRule, learner: Learner) -> None:
        super().__init__()
        if not rule.batches and options.memory != "store":
            raise ConfigError(
                f"memory is {options.memory!r}, but {options.inner_optimizer} keeps its state in the graph of all steps; use "
                f"memory='store', or one of the optimisers {', '.join(RULES)}"
            )
        self._method = GradientMethod(
            rule,
            SupportGradient(options.memory, options.support_chunk),
            float(options.inner_weight_decay),
            options.inner_clip_norm,
        )
        self.step_sizes = InnerStepSizes(
            options.inner_lr, options.inner_steps, options.initial_inner_lr, learner.able()
        )

    def method(self) -> InnerMethod:
        return self._method

    def settings(self, tensors: Params) -> Settings:
        """The step size of each tensor at every step."""
        return self.step_sizes(tensors)

    def follow(self, tensors: Mapping[str, Tensor]) -> None:
        self.step_sizes.follow(tensors)


def _clip(grads: Params, bound: float, stacked: bool) -> Params:
    """Times ``min(1, bound / (norm + 1e-6))``, as ``torch.nn.utils.clip_grad_norm_``; of each task where they are stacked."""
    first = 1 if stacked else 0
    of_each = [(grad * grad).sum(tuple(range(first, grad.ndim))) if grad.ndim > first else grad * grad
               for grad in grads.values()]  # fmt: skip
    squares = torch.stack(of_each).sum(0)
    # inside the bound the root, which has no derivative at 0, is not asked for
    inside = squares <= max(bound - 1e-6, 0.0) ** 2
    scale = torch.where(inside, 1.0, bound / (torch.where(inside, 1.0, squares).sqrt() + 1e-6)).clamp(max=1.0)
    return {name: grad * scale.view(-1, *(1,) * (grad.ndim - 1)) if first else grad * scale
            for name, grad in grads.items()}  # fmt: skip
