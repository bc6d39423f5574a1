"""Inner step sizes: one number, one a step, one a part of the network, or learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from metalearn.errors import ConfigError
from metalearn.modules.arguments import check_step_size

__all__ = ["InnerLR", "InnerStepSizes", "Learned"]

Learned = Literal["learn", "learn_per_step", "learn_per_element"]
InnerLR = float | list[float] | dict[str, float] | Learned


class InnerStepSizes(nn.Module):
    """The step size of every inner step and adapted tensor.

    Args:
        inner_lr: a number; a list with one number a step (later steps use the last); a mapping from the beginnings of
            tensors' names, such as ``"body.0"``, to numbers, of which the longest that fits counts; ``"learn"``: one learned
            number per adapted tensor, shared by all steps; ``"learn_per_step"``: one per tensor and step (Antoniou et al.
            2019, MAML++); ``"learn_per_element"``: one per element (Li et al. 2017, Meta-SGD). The outer optimiser trains
            what is learned.
        inner_steps: the length that a list must have.
        initial: where learned step sizes start.
        tensors: the adapted tensors by name.

    Raises:
        ConfigError: a step size is not a finite number above 0, the list has another length, or the mapping does not fit the
            tensors.
    """

    def __init__(self, inner_lr: InnerLR, inner_steps: int, initial: float, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.names = list(tensors)
        self.learned: nn.Parameter | None = None
        self.elements: nn.ParameterList | None = None
        self.fixed: list[dict[str, Tensor | float]] = []
        if isinstance(inner_lr, str):
            if inner_lr not in get_args(Learned):
                raise ConfigError(
                    f"inner_lr is {inner_lr!r}, but it must be a number, a list, a mapping or one of "
                    f"{', '.join(get_args(Learned))}; use inner_lr=0.4"
                )
            check_step_size("initial_inner_lr", initial)
            count = len(self.names)
            if inner_lr == "learn":
                self.learned = nn.Parameter(torch.full((count,), float(initial)))
            elif inner_lr == "learn_per_step":
                self.learned = nn.Parameter(torch.full((inner_steps, count), float(initial)))
            else:
                self.elements = nn.ParameterList(
                    torch.full_like(tensor, float(initial), requires_grad=True) for tensor in tensors.values()
                )
        elif isinstance(inner_lr, Mapping):
            self.fixed = [self._read(inner_lr)]
        elif isinstance(inner_lr, Sequence):
            if len(inner_lr) != inner_steps:
                raise ConfigError(
                    f"inner_lr lists {len(inner_lr)} step sizes, but there are {inner_steps} inner steps; give one number a "
                    "step, or a single number for all"
                )
            for step, value in enumerate(inner_lr):
                check_step_size(f"inner_lr[{step}]", value)
            self.fixed = [dict.fromkeys(self.names, float(value)) for value in inner_lr]
        else:
            check_step_size("inner_lr", inner_lr)
            self.fixed = [dict.fromkeys(self.names, float(inner_lr))]

    def forward(self) -> list[dict[str, Tensor | float]]:
        """For every step, the step size of each adapted tensor; the last entry serves all later steps."""
        if self.elements is not None:
            return [dict(zip(self.names, self.elements, strict=True))]
        if self.learned is not None:
            rows = self.learned.unbind() if self.learned.ndim == 2 else [self.learned]
            return [dict(zip(self.names, row.unbind(), strict=True)) for row in rows]
        return self.fixed

    def _read(self, inner_lr: Mapping[str, float]) -> dict[str, Tensor | float]:
        for prefix, value in inner_lr.items():
            check_step_size(f"inner_lr[{prefix!r}]", value)
            if not any(name.startswith(prefix) for name in self.names):
                raise ConfigError(
                    f"inner_lr names {prefix!r}, but no adapted tensor's name begins so; there are {', '.join(self.names[:6])}"
                )
        found: dict[str, Tensor | float] = {}
        for name in self.names:
            fitting = [prefix for prefix in inner_lr if name.startswith(prefix)]
            if not fitting:
                raise ConfigError(
                    f"inner_lr says no step size for {name}, but every adapted tensor needs one; add an entry whose name "
                    f"begins like it, or '' for all others"
                )
            found[name] = float(inner_lr[max(fitting, key=len)])
        return found
