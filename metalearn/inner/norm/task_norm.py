"""Batch normalisation whose statistics belong to one task, in the place of torch's.

Few-shot learners normalise every task by its own examples. ``torch.nn.BatchNorm*`` gets this wrong in three ways. It writes
running statistics during the inner loop. In ``eval()`` it switches to statistics that mix all tasks, so that accuracy drops to
chance. Under ``torch.func.vmap`` its second-order gradients are silently wrong.
"""

from __future__ import annotations

import contextlib
from typing import Any, Protocol

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from metalearn.inner.ambient import Ambient, current, keeping_everything
from metalearn.inner.kernels import Geometry, first_block, is_first_block, normalise
from metalearn.inner.norm.moments import compute_moments, finish_block, is_plain, scale_and_shift
from metalearn.inner.norm.policies import NormPolicy, Policy, Source, Transductive, make_policy
from metalearn.inner.norm.step_statistics import StepStatistics

__all__ = ["TaskBatchNorm", "TaskNorm", "normalise_task", "policy_in_force"]

_ALL = Transductive()


class AffineSource(Source, Protocol):
    """What normalises, with its affine map."""

    @property
    def weight(self) -> Tensor | None: ...
    @property
    def bias(self) -> Tensor | None: ...
    @property
    def eps(self) -> float: ...


def policy_in_force(ambient: Ambient) -> Policy:
    """The policy of the learner whose forward pass this is."""
    return _ALL if ambient.policy is None else ambient.policy


def normalise_task(
    x: Tensor, source: AffineSource, ambient: Ambient, pools: bool = False, rectifies: bool = False
) -> Tensor:
    """``x`` ``[n, C, ...]`` normalised as the policy in force says, then pooled and rectified where that is asked for."""
    weight, bias, eps = source.weight, source.bias, source.eps
    moments = policy_in_force(ambient).find_moments(x, source, ambient)
    if moments is None:
        if ambient.rows is None and "norm" in ambient.operators and 2 <= x.ndim <= 4:
            images = x if x.ndim == 4 else x.reshape(*x.shape, *(1,) * (4 - x.ndim))
            y = normalise(images, weight, bias, eps, pools, rectifies)
            return y if x.ndim == 4 else y.flatten(x.ndim - 1)
        moments = compute_moments(x if ambient.rows is None else x[: ambient.rows])
    return finish_block(scale_and_shift(x, moments, weight, bias, eps), pools, rectifies)


class TaskBatchNorm(nn.Module):
    """Batch normalisation over the examples of one task, by the policy of the learner whose forward pass it is.

    It is no subclass of torch's, so that ``sync_batchnorm=True`` leaves it alone: statistics of several ranks are of several
    tasks.

    Args:
        source: the layer whose parameters (the same objects) and ``eps`` are taken over.
        name: the name of the layer in its network.
        stores: whether the layer's running statistics are taken over too.

    Example:
        >>> import torch
        >>> from metalearn.inner import TaskBatchNorm
        >>> layer = TaskBatchNorm(torch.nn.BatchNorm1d(3), name="norm", stores=False)
        >>> layer(torch.randn(10, 3)).mean(0).abs().max().item() < 1e-5
        True
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    running_mean: Tensor | None
    running_var: Tensor | None

    def __init__(self, source: _BatchNorm, name: str, stores: bool) -> None:
        super().__init__()
        self.name = name
        self.eps = source.eps
        self.momentum = 0.1 if source.momentum is None else source.momentum
        self.weight, self.bias = source.weight, source.bias
        self.register_buffer("running_mean", source.running_mean if stores else None)
        self.register_buffer("running_var", source.running_var if stores else None)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` of shape ``[n, C, ...]`` over all axes but the channel's."""
        ambient = current()
        with keeping_everything() if ambient.keeps_everything else contextlib.nullcontext():
            return normalise_task(x, self, ambient)

    def run_block(self, x: Tensor, convolution: nn.Conv2d, pools: bool) -> Tensor | None:
        """A convolution of ``x`` ``[n, C, H, W]``, this normalisation, 2x2 max-pooling and rectification as one.

        ``None`` where our operators are not in use, so that the layers have to be called one by one.
        """
        ambient = current()
        if "norm" not in ambient.operators or ambient.keeps_everything:
            return None
        geometry = _geometry(convolution)
        uses_all = policy_in_force(ambient).uses_all(self, ambient)
        if pools and uses_all and is_first_block(x, convolution.weight, geometry):
            return first_block(x, convolution.weight, geometry, self.weight, self.bias, self.eps, True)
        return normalise_task(convolution(x), self, ambient, pools, True)


class TaskNorm:
    """The policy of a module, and what it makes of a network's layers.

    Args:
        network: the caller's network.
        policy: the policy of batch normalisation. ``"transductive"`` takes the statistics of whatever set is passed in.
            ``"support"`` takes those of the support set alone, so that a query's prediction does not depend on the
            other queries. ``"running"`` takes the stored running statistics of a pretrained backbone, which are never
            updated. ``"per_step"`` is as ``"transductive"`` in training, and keeps a running mean and variance for each
            number of inner steps, which evaluation then normalises by (Antoniou et al. 2019, MAML++).
        kept: the statistics that ``"per_step"`` keeps.

    Attributes:
        policy: the strategy of this name.

    Raises:
        ConfigError: the policy is unknown, or ``"running"`` is asked of a layer without running statistics.

    Example:
        >>> from metalearn import Conv4
        >>> from metalearn.inner import TaskNorm
        >>> TaskNorm(Conv4(), "support").policy.name
        'support'
    """

    def __init__(self, network: nn.Module, policy: NormPolicy, kept: StepStatistics | None = None) -> None:
        self.policy = make_policy(network, policy, kept)

    def replace(self, name: str, layer: nn.Module) -> nn.Module | None:
        """What stands for a layer in our copy of the network; ``None`` for a copy."""
        if not isinstance(layer, _BatchNorm) or not is_plain(layer):
            return None
        return TaskBatchNorm(layer, name, self.policy.stores)


def _geometry(convolution: nn.Conv2d) -> Geometry:
    assert not isinstance(convolution.padding, str)

    def pair(value: tuple[Any, ...]) -> tuple[int, int]:
        return value[0], value[1]

    stride, padding, dilation = map(pair, (convolution.stride, convolution.padding, convolution.dilation))
    return Geometry(stride, padding, dilation, convolution.groups)
