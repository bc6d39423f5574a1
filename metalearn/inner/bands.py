"""Losses for which a network says how sure it is: several outputs for each target, and a band around the prediction."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.checks import check_number, check_numbers
from metalearn.errors import ConfigError

__all__ = ["BandLoss", "GaussianNLL", "Quantiles"]

LEAST_VARIANCE = 1e-6


class BandLoss(ABC):
    """A loss whose outputs say what is predicted, and a band around it. It is a frozen dataclass.

    Example:
        >>> from metalearn.inner import BandLoss, GaussianNLL, Quantiles
        >>> isinstance(GaussianNLL(), BandLoss), Quantiles([0.1, 0.5, 0.9]).width
        (True, 3)
    """

    share: float
    """The share of targets that the band should hold; 0 where there is no band."""

    @property
    @abstractmethod
    def width(self) -> int:
        """Outputs for each target."""

    @abstractmethod
    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean over examples and values, a scalar."""

    @abstractmethod
    def point(self, outputs: Tensor) -> Tensor:
        """The predictions ``[n, k]`` of outputs ``[n, width k]``."""

    @abstractmethod
    def band(self, outputs: Tensor) -> Tensor:
        """The lower and the upper bound ``[2, n, k]``."""

    def describe(self) -> dict[str, Any]:
        """The loss in plain types, as a checkpoint keeps it."""
        values = dataclasses.asdict(self)  # type: ignore[call-overload]  # every such loss is a dataclass
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
        return {"class_path": f"metalearn.inner.{type(self).__name__}", "init_args": plain}


@dataclass(frozen=True)
class GaussianNLL(BandLoss):
    """The negative log-likelihood of a normal distribution whose mean and variance the network gives, in nats a value.

    For targets ``[n, k]`` the network has ``2k`` outputs: first the ``k`` means, then ``k`` numbers ``s`` of any sign. The
    variance is ``softplus(s) + 1e-6``, which is positive everywhere (Lakshminarayanan et al. 2017, section 2.2.1). Targets
    ``[n]`` take outputs ``[n, 2]``. Scale targets to a size of about 1, since a deviation cannot fall below 0.001.

    Args:
        share: the share of targets that the band should hold, between 0 and 1.

    Raises:
        ConfigError: ``share`` is not between 0 and 1.

    Example:
        >>> import torch
        >>> from metalearn.inner import GaussianNLL
        >>> loss = GaussianNLL(share=0.95)
        >>> outputs = torch.tensor([[2.0, 0.5413]])  # a mean of 2 and a variance of 1
        >>> loss.point(outputs), loss.deviation(outputs)
        (tensor([[2.]]), tensor([[1.0000]]))
        >>> [round(bound.item(), 2) for bound in loss.band(outputs)]
        [0.04, 3.96]
    """

    share: float = 0.95

    def __post_init__(self) -> None:
        check_number("share", self.share, "use 0.95", above=0, below=1)

    @property
    def width(self) -> int:
        """Outputs for each target."""
        return 2

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean over examples and values, a scalar."""
        error, variance = _lift(targets, outputs) - self.point(outputs), self._variance(outputs)
        return 0.5 * (variance.log() + error * error / variance + math.log(2 * math.pi)).mean()

    def point(self, outputs: Tensor) -> Tensor:
        """The means ``[n, k]`` of outputs ``[n, 2k]``."""
        return outputs.chunk(2, -1)[0]

    def deviation(self, outputs: Tensor) -> Tensor:
        """The standard deviations ``[n, k]`` of outputs ``[n, 2k]``, in the units of the targets."""
        return self._variance(outputs).sqrt()

    def band(self, outputs: Tensor) -> Tensor:
        """The lower and the upper bound ``[2, n, k]`` of outputs ``[n, 2k]``: a :attr:`share` of the targets lies between."""
        half = NormalDist().inv_cdf(0.5 + self.share / 2) * self.deviation(outputs)
        return torch.stack([self.point(outputs) - half, self.point(outputs) + half])

    def _variance(self, outputs: Tensor) -> Tensor:
        return F.softplus(outputs.chunk(2, -1)[1]) + LEAST_VARIANCE


@dataclass(frozen=True)
class Quantiles(BandLoss):
    """The pinball loss of several quantiles of the targets (Koenker and Bassett 1978).

    For targets ``[n, k]`` and ``q`` levels the network has ``q k`` outputs: first the ``k`` values of the first level, then
    those of the next. Targets ``[n]`` take outputs ``[n, q]``. The band goes from the lowest level to the highest.

    Args:
        levels: the levels of the quantiles, rising, each between 0 and 1.

    Raises:
        ConfigError: there is no level, one is not between 0 and 1, or they do not rise.

    Example:
        >>> import torch
        >>> from metalearn.inner import Quantiles
        >>> loss = Quantiles([0.1, 0.5, 0.9])
        >>> outputs = torch.tensor([[-1.0, 0.0, 2.0]])  # one target
        >>> loss.point(outputs), round(loss.share, 6)
        (tensor([[0.]]), 0.8)
        >>> loss(outputs, torch.tensor([[1.0]]))  # (0.1 * 2 + 0.5 * 1 + 0.1 * 1) / 3
        tensor(0.2667)
    """

    levels: tuple[float, ...] = (0.1, 0.5, 0.9)

    def __post_init__(self) -> None:
        remedy = "use [0.1, 0.5, 0.9]"
        check_numbers("levels", self.levels, remedy)
        for level in self.levels:
            check_number("levels", level, remedy, above=0, below=1)
        if not self.levels or list(self.levels) != sorted(set(self.levels)):
            raise ConfigError(f"levels is {list(self.levels)}, but levels must be at least one, and rise; {remedy}")
        object.__setattr__(self, "levels", tuple(self.levels))

    @property
    def width(self) -> int:
        """Outputs for each target."""
        return len(self.levels)

    @property
    def share(self) -> float:  # type: ignore[override]
        """The share of targets that the band should hold; 0 for a single level, which has none."""
        return self.levels[-1] - self.levels[0]

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean over examples, values and levels, a scalar."""
        targets = _lift(targets, outputs)
        errors = [targets - part for part in outputs.chunk(self.width, -1)]
        losses = [torch.maximum(p * error, (p - 1) * error) for p, error in zip(self.levels, errors, strict=True)]
        return torch.stack(losses).mean()

    def point(self, outputs: Tensor) -> Tensor:
        """The quantile ``[n, k]`` whose level is nearest to one half, of outputs ``[n, q k]``."""
        nearest = min(range(self.width), key=lambda number: abs(self.levels[number] - 0.5))
        return self.quantiles(outputs)[nearest]

    def quantiles(self, outputs: Tensor) -> Tensor:
        """The quantiles ``[q, n, k]`` of outputs ``[n, q k]``, sorted, so that none crosses another."""
        return torch.stack(outputs.chunk(self.width, -1)).sort(0).values

    def band(self, outputs: Tensor) -> Tensor:
        """The lowest and the highest quantile ``[2, n, k]`` of outputs ``[n, q k]``."""
        ordered = self.quantiles(outputs)
        return torch.stack([ordered[0], ordered[-1]])


def _lift(targets: Tensor, outputs: Tensor) -> Tensor:
    """Targets ``[n]`` as ``[n, 1]`` beside outputs ``[n, w]``; others as they are."""
    return targets.unsqueeze(-1) if targets.ndim < outputs.ndim else targets
