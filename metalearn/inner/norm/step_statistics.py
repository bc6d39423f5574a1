"""What the policy ``"per_step"`` keeps."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from metalearn.errors import ConfigError
from metalearn.inner.norm.moments import is_plain

__all__ = ["StepStatistics"]


class StepStatistics(nn.Module):
    """A running mean and variance for each number of inner steps and each layer of batch normalisation.

    They are the state of the policy ``"per_step"`` (Antoniou et al. 2019, MAML++).

    Args:
        network: the network whose layers the statistics belong to.
        steps: how many inner steps training takes.

    Raises:
        ConfigError: a layer computes something of its own, so that its statistics are not known.

    Example:
        >>> import torch
        >>> from metalearn.inner import StepStatistics
        >>> kept = StepStatistics(torch.nn.Sequential(torch.nn.BatchNorm1d(3)), steps=5)
        >>> mean, var = kept.at("0", step=2)
        >>> mean, var
        (tensor([0., 0., 0.]), tensor([1., 1., 1.]))
    """

    def __init__(self, network: nn.Module, steps: int) -> None:
        super().__init__()
        for name, layer in network.named_modules():
            if not isinstance(layer, _BatchNorm):
                continue
            if not is_plain(layer):
                raise ConfigError(
                    f"norm is 'per_step', but layer {name!r} is a {type(layer).__name__} with a forward of its own, whose "
                    "statistics are not known; use norm='transductive' or norm='support'"
                )
            shape = steps + 1, layer.num_features
            key = self.key(name)
            like = layer.weight if layer.weight is not None else torch.zeros(())
            self.register_buffer(f"{key}:step_mean", torch.zeros(shape, device=like.device, dtype=like.dtype))
            self.register_buffer(f"{key}:step_var", torch.ones(shape, device=like.device, dtype=like.dtype))

    @staticmethod
    def key(layer: str) -> str:
        """A layer's name without the dots that a buffer's name may not have."""
        return layer.replace(".", "/")

    def of(self, layer: str) -> tuple[Tensor, Tensor]:
        """Mean and variance ``[steps + 1, C]`` of the layer of this name."""
        return self.get_buffer(f"{self.key(layer)}:step_mean"), self.get_buffer(f"{self.key(layer)}:step_var")

    def at(self, layer: str, step: int) -> tuple[Tensor, Tensor]:
        """Mean and variance ``[C]`` of the layer of this name after ``step`` inner steps; later steps have the last one's."""
        mean, var = self.of(layer)
        step = min(step, len(mean) - 1)
        return mean[step], var[step]
