"""Negative curvature and residuals that grow: how they are measured, and what is done about them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor

from metalearn.bilevel.trees import dot
from metalearn.errors import BilevelError

__all__ = ["REMEDIES", "Faults", "Refusal", "SetAside", "curvature_along", "curvature_error"]

REMEDIES = (
    "add l2 regularisation, solve the inner problem further, give the solver damping= above the negative curvature, or use "
    "CGOrMinRes, or the estimator ITD, which needs no curvature"
)
"""What helps where the inner loss is not strongly convex."""


class Faults(ABC):
    """What is done about the problems in which an iteration fails."""

    @abstractmethod
    def meet_curvature(self, curvature: Tensor, where: Tensor) -> None:
        """Take note of search directions of this curvature, ``[]`` or ``[B]``, in the problems ``where``."""

    @abstractmethod
    def meet_growth(self, first: Tensor, last: Tensor, curvature: Tensor, where: Tensor) -> None:
        """Take note that residuals grew from ``first`` to ``last`` along directions of this curvature."""

    def set_aside(self, like: Tensor) -> Tensor:
        """Return which problems are left for another solver, ``[]`` or ``[B]`` bool."""
        return torch.zeros_like(like, dtype=torch.bool)


@dataclass(frozen=True)
class Refusal(Faults):
    """Every fault is an error.

    Attributes:
        method: the solver's name.
        damping: what was added to ``H``.
        remedy: what a curvature must be at which a residual grows, and what to do.
    """

    method: str
    damping: float
    remedy: str

    def meet_curvature(self, curvature: Tensor, where: Tensor) -> None:
        raise curvature_error(self.method, _smallest(curvature, where), self.damping)

    def meet_growth(self, first: Tensor, last: Tensor, curvature: Tensor, where: Tensor) -> None:
        raise BilevelError(
            f"the residual |H v - b| of {self.method} grew from {_smallest(first, where):.3g} to "
            f"{_smallest(last, where):.3g}, where the inner loss has the curvature "
            f"{_smallest(curvature, where) - self.damping:.3g}; {self.remedy}"
        )


@dataclass
class SetAside(Faults):
    """A problem with a fault rests, and its curvature is kept.

    Attributes:
        curvatures: one tensor a fault, ``[]`` or ``[B]``, infinite for the problems without it.
    """

    curvatures: list[Tensor] = field(default_factory=list)

    def meet_curvature(self, curvature: Tensor, where: Tensor) -> None:
        self.curvatures.append(torch.where(where, curvature, math.inf))

    def meet_growth(self, first: Tensor, last: Tensor, curvature: Tensor, where: Tensor) -> None:
        self.meet_curvature(curvature, where)

    def set_aside(self, like: Tensor) -> Tensor:
        return self.smallest() < math.inf if self.curvatures else super().set_aside(like)

    def smallest(self) -> Tensor:
        """Return the smallest curvature of each problem."""
        return torch.stack(self.curvatures).amin(0)


def curvature_along(v: Tensor, along: Tensor) -> Tensor:
    """Return ``v'H v / v'v`` for ``along = H v``, ``[]`` or ``[B]``; squares of long vectors do not overflow."""
    size = v.abs().amax(-1, keepdim=True)
    size = torch.where(size > 0, size, 1.0)
    return dot(v / size, along / size) / dot(v / size, v / size)


def curvature_error(method: str, curvature: float, damping: float = 0.0) -> BilevelError:
    """Make the error of a method that needs a positive definite ``H + damping I`` and met this curvature of it."""
    place = f"{curvature - damping:.3g}" + (f", with damping={damping:g} {curvature:.3g}," if damping else "")
    return BilevelError(
        f"{method} met the curvature {place} in inner_loss, but it must be strongly convex in y; {REMEDIES}"
    )


def _smallest(values: Tensor, where: Tensor) -> float:
    return float(values[where].min())
