"""Inner step sizes: one number, one a step, or learned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from metalearn.errors import ConfigError
from metalearn.modules.arguments import check_step_size

__all__ = ["InnerStepSizes"]


class InnerStepSizes(nn.Module):
    """The step size of every inner step and adapted tensor.

    Args:
        inner_lr: a number; a list with one number a step (later steps use the last); or ``"learn"``: one learned number
            per adapted tensor, shared by all steps, which the outer optimiser trains (Li et al. 2017, Meta-SGD, there per
            element; Antoniou et al. 2019, MAML++, there per layer and step).
        inner_steps: the length that a list must have.
        initial: where learned step sizes start.
        names: the adapted tensors.

    Raises:
        ConfigError: a step size is not a finite number above 0, or the list has another length.
    """

    def __init__(
        self,
        inner_lr: float | Sequence[float] | Literal["learn"],
        inner_steps: int,
        initial: float,
        names: Sequence[str],
    ) -> None:
        super().__init__()
        self.names = list(names)
        self.learned: nn.Parameter | None = None
        self.fixed: list[float] = []
        if isinstance(inner_lr, str):
            if inner_lr != "learn":
                raise ConfigError(
                    f"inner_lr is {inner_lr!r}, but it must be a number, a list or 'learn'; use inner_lr=0.4"
                )
            check_step_size("initial_inner_lr", initial)
            self.learned = nn.Parameter(torch.full((len(self.names),), float(initial)))
        elif isinstance(inner_lr, Sequence):
            if len(inner_lr) != inner_steps:
                raise ConfigError(
                    f"inner_lr lists {len(inner_lr)} step sizes, but there are {inner_steps} inner steps; give one number a "
                    "step, or a single number for all"
                )
            for step, value in enumerate(inner_lr):
                check_step_size(f"inner_lr[{step}]", value)
            self.fixed = [float(value) for value in inner_lr]
        else:
            check_step_size("inner_lr", inner_lr)
            self.fixed = [float(inner_lr)]

    def forward(self) -> list[dict[str, Tensor | float]]:
        """For every step, the step size of each adapted tensor; the last entry serves all later steps."""
        if self.learned is not None:
            return [dict(zip(self.names, self.learned.unbind(), strict=True))]
        return [dict.fromkeys(self.names, value) for value in self.fixed]
