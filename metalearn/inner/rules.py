"""Update rules of the inner loop, as pure functions of parameters and gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor

from metalearn.errors import ConfigError

__all__ = ["RULES", "Params", "StepSizes", "UpdateRule", "get_rule", "sgd"]

Params = dict[str, Tensor]
StepSizes = Sequence[Mapping[str, Tensor | float]]
"""For every inner step, the step size of each adapted tensor; the last entry serves all later steps."""


class UpdateRule(Protocol):
    """``rule(params, grads, step_sizes) -> params``: one inner step that autograd can differentiate."""

    def __call__(self, params: Params, grads: Params, step_sizes: Mapping[str, Tensor | float]) -> Params: ...


def sgd(params: Params, grads: Params, step_sizes: Mapping[str, Tensor | float]) -> Params:
    """``w <- w - lr * g`` for each tensor (Finn et al. 2017, equation 1)."""
    return {name: value - step_sizes[name] * grads[name] for name, value in params.items()}


RULES: dict[str, UpdateRule] = {"sgd": sgd}


def get_rule(name: str) -> UpdateRule:
    """Look an update rule up by its name.

    Raises:
        ConfigError: there is no rule of that name.
    """
    if name not in RULES:
        raise ConfigError(f"inner_optimizer is {name!r}, but it must be one of {', '.join(RULES)}; use 'sgd'")
    return RULES[name]
