"""Batch normalisation whose statistics belong to one task.

Few-shot learners normalise every task by its own examples. ``torch.nn.BatchNorm*`` gets this wrong in three ways: it
writes running statistics during the inner loop, ``eval()`` switches to statistics that mix all tasks (accuracy drops to
chance), and under ``torch.func.vmap`` its second-order gradients are silently wrong. :class:`TaskBatchNorm` replaces it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from metalearn.errors import ConfigError
from metalearn.inner.kernels import Geometry, first_block, has_short_patches, is_own, normalise

__all__ = ["NormPolicy", "TaskBatchNorm", "own_batch_norm", "recording", "statistics"]

NormPolicy = Literal["transductive", "support", "running", "per_step"]


class _Statistics(NamedTuple):
    rows: int | None = None
    step: int = 0


_ALL = _Statistics()
_current: ContextVar[_Statistics] = ContextVar("metalearn_statistics", default=_ALL)
_recording: ContextVar[bool] = ContextVar("metalearn_recording", default=False)


@contextlib.contextmanager
def statistics(rows: int | None = None, step: int = 0) -> Iterator[None]:
    """Within this context every :class:`TaskBatchNorm` takes its statistics from the first ``rows`` examples.

    Args:
        rows: the number of leading examples that the statistics are taken from; ``None`` for all.
        step: the inner steps that the weights have behind them, for the policy ``"per_step"``.
    """
    token = _current.set(_Statistics(rows, step))
    try:
        yield
    finally:
        _current.reset(token)


@contextlib.contextmanager
def recording(enabled: bool) -> Iterator[None]:
    """Whether the policy ``"per_step"`` writes down the statistics that it meets: in a training step, once each."""
    token = _recording.set(enabled)
    try:
        yield
    finally:
        _recording.reset(token)


class TaskBatchNorm(nn.Module):
    """Batch normalisation over the examples of one task; the same in ``train()`` and ``eval()``, and never stateful.

    Keeps the parameter and buffer names of ``torch.nn.BatchNorm*``, so that state dicts are interchangeable. It is no
    subclass of it, so that ``sync_batchnorm=True`` leaves it alone: statistics of several ranks are of several tasks.

    Args:
        source: the layer whose parameters (the same objects), buffers and ``eps`` are taken over.
        policy: ``"transductive"``: statistics of whatever set is passed in; ``"support"``: of the support set alone, so
            that a query's prediction does not depend on the other queries; ``"running"``: the stored running
            statistics, never updated (for a pretrained backbone); ``"per_step"``: in training as ``"transductive"``, while
            a running mean and variance is kept for each number of inner steps, which evaluation then normalises by
            (Antoniou et al. 2019, MAML++).
        steps: inner steps in training, for ``"per_step"``.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    running_mean: Tensor | None
    running_var: Tensor | None
    step_mean: Tensor
    step_var: Tensor

    def __init__(self, source: _BatchNorm, policy: NormPolicy, steps: int = 0) -> None:
        super().__init__()
        self.eps = source.eps
        self.num_features = source.num_features
        self.policy: NormPolicy = policy
        self.weight, self.bias = source.weight, source.bias
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, getattr(source, name))
        if policy == "per_step":
            self.momentum = 0.1 if source.momentum is None else source.momentum
            self.register_buffer("step_mean", torch.zeros(steps + 1, self.num_features))
            self.register_buffer("step_var", torch.ones(steps + 1, self.num_features))
        self.pools = self.rectifies = False
        self._convolution: tuple[_Deferred, ...] = ()  # in a tuple, so that its parameters are not ours too
        self.train(source.training)

    def extra_repr(self) -> str:
        before = "a convolution, then " if self._convolution else ""
        then = [name for name, done in (("2x2 max-pooling", self.pools), ("ReLU", self.rectifies)) if done]
        return f"{before}{self.num_features}, eps={self.eps}, policy={self.policy!r}" + "".join(
            f", then {n}" for n in then
        )

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` of shape ``[n, C, ...]`` over all axes but the channel's."""
        rows, step = _current.get()
        transductive = rows is None and (self.policy != "per_step" or (self.training and not _recording.get()))
        for conv in self._convolution:
            if transductive and self.pools and self.policy != "running" and is_own("norm"):
                return first_block(x, conv.weight, conv.geometry, self.weight, self.bias, self.eps, self.rectifies)
            x = F.conv2d(x, conv.weight, None, *conv.geometry)
        if self.policy == "running":
            assert self.running_mean is not None
            assert self.running_var is not None
            return self._finish(self._normalise(x, self.running_mean, self.running_var))
        if self.policy == "per_step":
            step = min(step, len(self.step_mean) - 1)
            if not self.training:
                return self._finish(self._normalise(x, self.step_mean[step], self.step_var[step]))
            if _recording.get():
                self._record(x.detach(), step)
        if rows is None and is_own("norm") and 2 <= x.ndim <= 4:
            as_images = x.reshape(*x.shape, *(1,) * (4 - x.ndim))
            y = normalise(as_images, self.weight, self.bias, self.eps, self.pools, self.rectifies)
            return y if x.ndim == 4 else y.flatten(x.ndim - 1)
        head = x if rows is None else x[:rows]
        return self._finish(self._normalise(x, *_moments(head)))

    @torch.no_grad()
    def _record(self, x: Tensor, step: int) -> None:
        for kept, found in zip((self.step_mean, self.step_var), _moments(x), strict=True):
            kept[step].lerp_(found.to(kept.dtype), self.momentum)

    def _normalise(self, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        scale = torch.rsqrt(var + self.eps)
        if self.weight is not None:
            scale = scale * self.weight
        shift = -mean * scale
        if self.bias is not None:
            shift = shift + self.bias
        shape = (1, -1) + (1,) * (x.ndim - 2)
        return (x * scale.view(shape) + shift.view(shape)).to(x.dtype)

    def _finish(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(x, 2) if self.pools else x
        return x.relu() if self.rectifies else x


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance ``[C]`` of ``x`` ``[n, C, ...]``, as torch's var_mean but some 40 times faster on a CPU."""
    # bf16 carries 8 bits of mantissa: a mean over n*H*W values has to be summed in fp32
    x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    axes = [axis for axis in range(x.ndim) if axis != 1]
    mean = x.mean(axes, keepdim=True)
    return mean.flatten(), ((x - mean) ** 2).mean(axes)


class _Deferred(nn.Module):
    """Holds a convolution's place and weight; the normalisation after it convolves."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self._was = str(layer)
        self.weight = layer.weight
        assert not isinstance(layer.padding, str)
        self.geometry = Geometry(_pair(layer.stride), _pair(layer.padding), _pair(layer.dilation), layer.groups)

    def extra_repr(self) -> str:
        return f"{self._was}, done by the normalisation after it"

    def forward(self, x: Tensor) -> Tensor:
        return x


class Absorbed(nn.Module):
    """Holds the place of a layer whose work the normalisation before it does."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self._was = str(layer)

    def extra_repr(self) -> str:
        return f"{self._was}, done by the normalisation before it"

    def forward(self, x: Tensor) -> Tensor:
        return x


def _absorb(block: nn.Sequential) -> None:
    """Let each normalisation do the 2x2 max-pooling and the ReLU that follow it, in either order: they commute; and, if it
    pools, the convolution of grey images before it."""
    names = list(block._modules)
    for position, name in enumerate(names):
        norm = block._modules[name]
        if not isinstance(norm, TaskBatchNorm) or norm.pools or norm.rectifies:
            continue
        for follower in names[position + 1 : position + 3]:
            layer = block._modules[follower]
            if layer is None or _has_hooks(norm) or _has_hooks(layer):
                break
            if type(layer) is nn.ReLU and not norm.rectifies:
                norm.rectifies = True
            elif type(layer) is nn.MaxPool2d and not norm.pools and _halves(layer):
                norm.pools = True
            else:
                break
            block._modules[follower] = Absorbed(layer)
        before = block._modules[names[position - 1]] if position else None
        if norm.pools and type(before) is nn.Conv2d and _is_first(before) and not _has_hooks(before):
            deferred = block._modules[names[position - 1]] = _Deferred(before)
            norm._convolution = (deferred,)


def _is_first(layer: nn.Conv2d) -> bool:
    """Whether the layer convolves grey images in the plain way, see :func:`metalearn.inner.kernels.first_block`."""
    plain = layer.padding_mode == "zeros" and layer.bias is None and not isinstance(layer.padding, str)
    return plain and has_short_patches(layer.weight, Geometry(groups=layer.groups))


def _pair(value: tuple[int, ...]) -> tuple[int, int]:
    return value[0], value[1]


def _halves(layer: nn.MaxPool2d) -> bool:
    sides = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    plain = [side if isinstance(side, tuple) else (side, side) for side in sides]
    return plain == [(2, 2), (2, 2), (0, 0), (1, 1)] and not layer.ceil_mode and not layer.return_indices


def _has_hooks(layer: nn.Module) -> bool:
    return bool(layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks)


def own_batch_norm(module: nn.Module, policy: NormPolicy, steps: int = 0) -> nn.Module:
    """Replace, in place, every ``BatchNorm`` layer of ``module`` by a :class:`TaskBatchNorm` with the same parameters.

    Args:
        module: the network.
        policy: see :class:`TaskBatchNorm`.
        steps: inner steps in training, for ``"per_step"``.

    Returns:
        ``module`` itself, or the replacement if ``module`` is a batch normalisation layer.

    Raises:
        ConfigError: the policy is unknown, or ``"running"`` is asked of a layer without running statistics.
    """
    if policy not in get_args(NormPolicy):
        raise ConfigError(
            f"norm is {policy!r}, but it must be one of {', '.join(get_args(NormPolicy))}; "
            "'transductive' is the MAML paper's choice"
        )

    def owned(layer: nn.Module, name: str) -> nn.Module:
        if isinstance(layer, TaskBatchNorm):
            if "per_step" in (policy, layer.policy) and policy != layer.policy:
                raise ConfigError(
                    f"norm is {policy!r}, but the backbone belongs to a module with norm={layer.policy!r}; build a new one"
                )
            layer.policy = policy
        if isinstance(layer, (_BatchNorm, TaskBatchNorm)) and policy == "running" and layer.running_mean is None:
            raise ConfigError(
                f"norm is 'running', but layer {name or 'backbone'} keeps no running statistics; "
                "use norm='transductive' or norm='support'"
            )
        if isinstance(layer, _BatchNorm):
            return TaskBatchNorm(layer, policy, steps)
        for child_name, child in list(layer.named_children()):
            replacement = owned(child, f"{name}.{child_name}".lstrip("."))
            if replacement is not child:
                setattr(layer, child_name, replacement)
        if type(layer) is nn.Sequential:
            _absorb(layer)
        return layer

    return owned(module, "")
