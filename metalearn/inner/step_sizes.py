"""Inner step sizes: one number, one a step, one a part of the network, or learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from metalearn.checks import check_number
from metalearn.errors import ConfigError

__all__ = ["REMEDY", "InnerLR", "InnerStepSizes", "Learned", "check_inner_lr", "scale_inner_lr"]

REMEDY = "use 0.4 for Omniglot or 0.01 for miniImageNet"
"""What a step size should be instead."""

Learned = Literal["learn", "learn_per_step", "learn_per_element"]
InnerLR = float | list[float] | dict[str, float] | Learned


def check_inner_lr(name: str, value: object) -> None:
    """Raise unless ``value`` says step sizes, or how they are learned; whether it fits a network is another question."""
    if isinstance(value, str):
        if value not in get_args(Learned):
            raise ConfigError(
                f"{name} is {value!r}, but it must be a number, a list, a mapping or one of {', '.join(get_args(Learned))}; "
                f"use {name}=0.4"
            )
    elif isinstance(value, Mapping):
        for prefix, size in value.items():
            check_number(f"{name}[{prefix!r}]", size, REMEDY, above=0)
    elif isinstance(value, Sequence):
        for step, size in enumerate(value):
            check_number(f"{name}[{step}]", size, REMEDY, above=0)
    else:
        check_number(name, value, REMEDY, above=0)


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
        tensors: the tensors that may adapt, by name, trainable or frozen.

    Raises:
        ConfigError: a step size is not a finite number above 0, the list has another length, or the mapping does not fit the
            tensors.
    """

    def __init__(self, inner_lr: InnerLR, inner_steps: int, initial: float, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        check_inner_lr("inner_lr", inner_lr)
        self.inner_lr, self._steps, self._initial = inner_lr, inner_steps, float(initial)
        self._tensors = {} if isinstance(inner_lr, str) else dict(tensors)
        self.rescaled = False
        """Whether somebody chose other sizes than those of training."""
        self.learned: nn.Parameter | None = None
        self.elements: nn.ParameterList | None = None
        if isinstance(inner_lr, str):
            check_number("initial_inner_lr", initial, "use 0.1", above=0)
            self.follow(tensors)
        elif isinstance(inner_lr, Mapping):
            _spread(inner_lr, list(tensors))
        elif isinstance(inner_lr, Sequence) and len(inner_lr) != inner_steps:
            raise ConfigError(
                f"inner_lr lists {len(inner_lr)} step sizes, but there are {inner_steps} inner steps; give one number a step, or "
                "a single number for all"
            )

    def forward(self, tensors: Mapping[str, Tensor] | None = None) -> list[dict[str, Tensor | float]]:
        """For every step, the step size of each of these tensors (of all); the last entry serves all later steps.

        Raises:
            ConfigError: step sizes are learned, and there is none for a tensor.
        """
        tensors = self._tensors if tensors is None else tensors
        if isinstance(self.inner_lr, Mapping):
            return [_spread(self.inner_lr, list(tensors))]
        if isinstance(self.inner_lr, Sequence) and not isinstance(self.inner_lr, str):
            return [dict.fromkeys(tensors, float(value)) for value in self.inner_lr]
        if not isinstance(self.inner_lr, str):
            return [dict.fromkeys(tensors, float(self.inner_lr))]
        places = self._find(tensors)
        for name, place in places.items():
            if place is None:
                raise ConfigError(
                    f"inner_lr is {self.inner_lr!r}, but {name} came into the network after its step sizes were made, so it has "
                    "none that the outer optimiser trains; change layers before fit, or use a number"
                )
        rows = self._rows()
        return [{name: row[place] for name, place in places.items() if place is not None} for row in rows]

    @torch.no_grad()
    def rescale(self, factor: float) -> None:
        """Multiply every step size; learned ones where they are, so that an optimiser goes on with them.

        Args:
            factor: a finite number above 0.
        """
        check_number("factor", factor, "use 0.5", above=0)
        self.rescaled = True
        self.inner_lr, self._initial = scale_inner_lr(self.inner_lr, factor), self._initial * factor
        for value in self.parameters():
            value.mul_(factor)

    @torch.no_grad()
    def follow(self, tensors: Mapping[str, Tensor]) -> None:
        """Learn a step size for each of these tensors, and for no others.

        Tensors that are known keep theirs, under whatever name they have now. This is for layers that were replaced or renamed;
        the outer optimiser must be made afterwards.
        """
        if not isinstance(self.inner_lr, str):
            return
        places = self._find(tensors)
        same = list(places.values()) == list(range(len(self._tensors))) and bool(self._tensors)
        if not same:
            if self.inner_lr == "learn_per_element":
                old = list(self.elements or [])
                self.elements = nn.ParameterList(
                    torch.full_like(tensor, self._initial, requires_grad=True) if place is None else old[place]
                    for place, tensor in zip(places.values(), tensors.values(), strict=True)
                )
            else:
                rows = self.learned
                shape = (len(places),) if self.inner_lr == "learn" else (self._steps, len(places))
                fresh = torch.full(shape, self._initial) if rows is None else rows.new_full(shape, self._initial)
                for index, place in enumerate(places.values()):
                    if place is not None and rows is not None:
                        fresh[..., index] = rows[..., place]
                self.learned = nn.Parameter(fresh)
        self._tensors = dict(tensors)

    def _rows(self) -> list[Sequence[Tensor]]:
        if self.elements is not None:
            return [list(self.elements)]
        assert self.learned is not None
        return [row.unbind() for row in (self.learned.unbind() if self.learned.ndim == 2 else [self.learned])]

    def _find(self, tensors: Mapping[str, Tensor]) -> dict[str, int | None]:
        """The place of each tensor among those that have a step size: by name, or, if it was renamed, by what it is."""
        places = {name: index for index, name in enumerate(self._tensors)}
        by_name: dict[str, int | None] = {}
        for name, tensor in tensors.items():
            place = places.get(name)
            if place is None:
                place = next((places[other] for other, value in self._tensors.items() if value is tensor), None)
            if place is not None and self.elements is not None and self.elements[place].shape != tensor.shape:
                place = None
            by_name[name] = place
        return by_name


def scale_inner_lr(inner_lr: InnerLR, factor: float) -> InnerLR:
    """Step sizes as a user says them, times a factor; those that are learned are said as they were.

    Example:
        >>> from metalearn.inner.step_sizes import scale_inner_lr
        >>> scale_inner_lr({"body": 0.5, "head": 2.0}, 0.5), scale_inner_lr("learn", 0.5)
        ({'body': 0.25, 'head': 1.0}, 'learn')
    """
    if isinstance(inner_lr, str):
        return inner_lr
    if isinstance(inner_lr, Mapping):
        return {prefix: float(size) * factor for prefix, size in inner_lr.items()}
    if isinstance(inner_lr, Sequence):
        return [float(size) * factor for size in inner_lr]
    return float(inner_lr) * factor


def _spread(inner_lr: Mapping[str, float], names: Sequence[str]) -> dict[str, Tensor | float]:
    """The step size of each tensor, by the longest beginning of its name in a mapping."""
    for prefix in inner_lr:
        if not any(name.startswith(prefix) for name in names):
            raise ConfigError(
                f"inner_lr names {prefix!r}, but no adapted tensor's name begins so; there are {', '.join(names[:6])}"
            )
    sizes: dict[str, Tensor | float] = {}
    for name in names:
        fitting = [prefix for prefix in inner_lr if name.startswith(prefix)]
        if not fitting:
            raise ConfigError(
                f"inner_lr says no step size for {name}, but every adapted tensor needs one; add an entry whose name "
                f"begins like it, or '' for all others"
            )
        sizes[name] = float(inner_lr[max(fitting, key=len)])
    return sizes
