"""Statistics of one forward pass, written down, and used in later ones in the place of any policy's own."""

from __future__ import annotations

import torch
from torch import Tensor

from metalearn.errors import ConfigError
from metalearn.inner.ambient import Ambient
from metalearn.inner.norm.moments import Moments, compute_moments
from metalearn.inner.norm.policies import Policy, Source

__all__ = ["Frozen", "Recording"]


class _Counter:
    """Names the normalisations of a forward pass: by their layer, and by their number where a layer has several."""

    def __init__(self) -> None:
        self._calls: dict[str, int] = {}

    def name(self, source: Source) -> str:
        layer = source.name or "batch_norm"
        number = self._calls[layer] = self._calls.get(layer, -1) + 1
        return f"{layer}:{number}" if number or source.name is None else layer


class Recording(Policy):
    """Writes down by which mean and variance each layer normalises the examples of one forward pass.

    Args:
        policy: says which these are; the statistics of all examples where it leaves that open.

    Attributes:
        moments: by the name of the layer. A second call of a layer has its number behind the name, as in ``"norm:1"``, and so
            has each call of ``F.batch_norm``, as in ``"batch_norm:0"``.
    """

    name = "running"

    def __init__(self, policy: Policy) -> None:
        self.moments: dict[str, Moments] = {}
        self._policy, self._counter = policy, _Counter()

    def uses_all(self, source: Source, ambient: Ambient) -> bool:
        return False

    def find_moments(self, x: Tensor, source: Source, ambient: Ambient) -> Moments | None:
        moments = self._policy.find_moments(x, source, ambient)
        if moments is None:
            moments = compute_moments(x)
        self.moments[self._counter.name(source)] = moments
        return moments


class Frozen(Policy):
    """Normalises by statistics that were written down, whatever the examples are. It is good for one forward pass.

    Args:
        moments: as :class:`Recording` names them.
    """

    name = "running"

    def __init__(self, moments: dict[str, Moments]) -> None:
        self._moments, self._counter = moments, _Counter()

    def uses_all(self, source: Source, ambient: Ambient) -> bool:
        return False

    def find_moments(self, x: Tensor, source: Source, ambient: Ambient) -> Moments | None:
        name = self._counter.name(source)
        if name not in self._moments:
            raise ConfigError(
                f"the network normalises at {name!r} for these queries, but it did not for the support set, so there are no "
                "statistics; use the model that adapt() gave, without independent()"
            )
        mean, var = self._moments[name]
        if mean.dtype in (torch.float16, torch.bfloat16):  # eps is lost beside a variance of so few digits
            mean, var = mean.float(), var.float()
        return mean, var
