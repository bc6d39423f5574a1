"""The solver of an algorithm that says nothing else: gradient steps by the rule that its options name."""

from __future__ import annotations

from metalearn.inner import Learner
from metalearn.inner.inner_loop import InnerLoop
from metalearn.inner.solvers import GradientSteps
from metalearn.modules.episodic.update_rule import find_rule

__all__ = ["make_gradient_steps"]


def make_gradient_steps(options: InnerLoop, learner: Learner) -> GradientSteps:
    """Gradient steps on the tensors of ``learner``.

    Raises:
        ConfigError: there is no such update rule, or step sizes do not fit.
    """
    return GradientSteps(options, find_rule(options.inner_optimizer), learner)
