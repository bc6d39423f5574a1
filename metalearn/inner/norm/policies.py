"""The policies of batch normalisation: whose statistics the examples of a task are normalised by.

A module has one policy. Its learner holds it, and says it around each forward pass; layers hold none.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from metalearn.checks import check_choice
from metalearn.errors import ConfigError
from metalearn.inner.ambient import Ambient
from metalearn.inner.norm.moments import Moments, compute_moments
from metalearn.inner.norm.step_statistics import StepStatistics

__all__ = ["NormPolicy", "PerStep", "Policy", "Running", "Source", "Support", "Transductive", "make_policy"]

NormPolicy = Literal["transductive", "support", "running", "per_step"]


class Source(Protocol):
    """What normalises: a layer, or a call of ``F.batch_norm``, which has no name."""

    @property
    def name(self) -> str | None: ...
    @property
    def training(self) -> bool: ...
    @property
    def momentum(self) -> float: ...
    @property
    def running_mean(self) -> Tensor | None: ...
    @property
    def running_var(self) -> Tensor | None: ...


class Policy(ABC):
    """Whose statistics are used.

    Attributes:
        name: as users write it.
        stores: whether layers take over the network's running statistics.
    """

    name: ClassVar[NormPolicy]
    stores: ClassVar[bool] = False

    def uses_all(self, source: Source, ambient: Ambient) -> bool:
        """Whether the statistics are those of all examples of a pass, and nobody else wants to see them."""
        return ambient.rows is None

    @abstractmethod
    def find_moments(self, x: Tensor, source: Source, ambient: Ambient) -> Moments | None:
        """The mean and variance to normalise ``x`` by; ``None`` for those of its first ``ambient.rows`` examples."""


@dataclass(frozen=True)
class Transductive(Policy):
    """Statistics of whatever set is passed in, as in the MAML paper."""

    name = "transductive"

    def find_moments(self, x: Tensor, source: Source, ambient: Ambient) -> Moments | None:
        return None


@dataclass(frozen=True)
class Support(Policy):
    """Statistics of the support set, which every query set is passed along with."""

    name = "support"

    def find_moments(self, x: Tensor, source: Source, ambient: Ambient) -> Moments | None:
        return None


@dataclass(frozen=True)
class Running(Policy):
    """The stored running statistics, which are never updated."""

    name = "running"
    stores = True

    def uses_all(self, source: Source, ambient: Ambient) -> bool:
        return False

    def find_moments(self, x: Tensor, source: Source, ambient: Ambient) -> Moments | None:
        if source.running_mean is None or source.running_var is None:
            raise ConfigError(
                "norm is 'running', but the backbone normalises by F.batch_norm without running statistics; use "
                "norm='transductive' or norm='support'"
            )
        return source.running_mean, source.running_var


@dataclass(frozen=True)
class PerStep(Policy):
    """In training statistics of whatever set is passed in; in evaluation those that training has kept for each inner step.

    Attributes:
        kept: those of every layer.
    """

    kept: StepStatistics

    name = "per_step"

    def uses_all(self, source: Source, ambient: Ambient) -> bool:
        return source.training and not ambient.recording and ambient.rows is None

    def find_moments(self, x: Tensor, source: Source, ambient: Ambient) -> Moments | None:
        if source.name is None:
            return None
        kept = self.kept.at(source.name, ambient.step)
        if not source.training:
            return kept
        if ambient.recording:
            self._record(x.detach(), kept, source.momentum)
        return None

    @torch.no_grad()
    def _record(self, x: Tensor, kept: Moments, momentum: float) -> None:
        for row, value in zip(kept, compute_moments(x), strict=True):
            row.lerp_(value.to(row.dtype), momentum)


def make_policy(network: nn.Module, name: NormPolicy, kept: StepStatistics | None = None) -> Policy:
    """The policy of this name for a network.

    Raises:
        ConfigError: the policy is unknown, or ``"running"`` is asked of a layer without running statistics.
    """
    check_choice("norm", name, get_args(NormPolicy))
    if name == "per_step":
        if kept is None:
            raise ConfigError("norm is 'per_step', which needs statistics; pass kept=StepStatistics(network, steps)")
        return PerStep(kept)
    if name == "running":
        _check_running(network)
    kinds: dict[str, type[Policy]] = {kind.name: kind for kind in (Transductive, Support, Running)}
    return kinds[name]()


def has_batch_norm(network: nn.Module) -> bool:
    """Whether a policy changes anything: the network has a layer of batch normalisation."""
    return any(isinstance(layer, _BatchNorm) for layer in network.modules())


def _check_running(network: nn.Module) -> None:
    for name, layer in network.named_modules():
        if isinstance(layer, _BatchNorm) and layer.running_mean is None:
            raise ConfigError(
                f"norm is 'running', but layer {name or 'backbone'} keeps no running statistics; "
                "use norm='transductive' or norm='support'"
            )
