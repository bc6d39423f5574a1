"""Batch normalisation whose statistics belong to one task.

Few-shot learners normalise every task by its own examples. ``torch.nn.BatchNorm*`` gets this wrong in three ways: it
writes running statistics during the inner loop, ``eval()`` switches to statistics that mix all tasks (accuracy drops to
chance), and under ``torch.func.vmap`` its second-order gradients are silently wrong. In our copy of a network's layers
:class:`TaskBatchNorm` stands for it; what calls ``torch.nn.functional.batch_norm`` itself, as layers derived from torch's do, is
answered by :class:`NormOperators`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import SyncBatchNorm, _BatchNorm
from torch.nn.utils.parametrize import is_parametrized

from metalearn.errors import ConfigError
from metalearn.inner.kernels import Geometry, OwnOperators, first_block, has_short_patches, is_own, normalise
from metalearn.inner.kernels.attention import ATTENTION, attend
from metalearn.inner.kernels.weight_norm import normalise_weight

__all__ = [
    "NormOperators",
    "NormPolicy",
    "StepStatistics",
    "TaskBatchNorm",
    "TaskNorm",
    "keeping_everything",
    "recording",
    "statistics",
    "transductive",
]

NormPolicy = Literal["transductive", "support", "running", "per_step"]


class _Statistics(NamedTuple):
    rows: int | None = None
    step: int = 0


_ALL = _Statistics()
_current: ContextVar[_Statistics] = ContextVar("metalearn_statistics", default=_ALL)
_recording: ContextVar[bool] = ContextVar("metalearn_recording", default=False)
_packing: ContextVar[bool] = ContextVar("metalearn_packing", default=False)
_overruled: ContextVar[bool] = ContextVar("metalearn_overruled", default=False)


@contextlib.contextmanager
def statistics(rows: int | None = None, step: int = 0) -> Iterator[None]:
    """Within this context batch normalisation takes its statistics from the first ``rows`` examples.

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


@contextlib.contextmanager
def transductive() -> Iterator[None]:
    """Within this context every policy is ``"transductive"``."""
    token = _overruled.set(True)
    try:
        yield
    finally:
        _overruled.reset(token)


def keeping_everything() -> contextlib.AbstractContextManager[Any]:
    """Within this context what operators save for the backward pass is kept as it is, whatever the hooks around it."""
    return torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor)


class StepStatistics(nn.Module):
    """A running mean and variance for each number of inner steps and batch normalisation layer: state of the policy
    ``"per_step"`` (Antoniou et al. 2019, MAML++).

    Args:
        network: its layers are those of the statistics.
        steps: inner steps in training.

    Raises:
        ConfigError: a layer computes something of its own, so that its statistics are not known.
    """

    def __init__(self, network: nn.Module, steps: int) -> None:
        super().__init__()
        for name, layer in network.named_modules():
            if not isinstance(layer, _BatchNorm):
                continue
            if not _is_plain(layer):
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


class TaskNorm:
    """The policy of a module, and what it makes of a network's layers.

    Args:
        network: the caller's.
        policy: ``"transductive"``: statistics of whatever set is passed in; ``"support"``: of the support set alone, so
            that a query's prediction does not depend on the other queries; ``"running"``: the stored running
            statistics, never updated (for a pretrained backbone); ``"per_step"``: in training as ``"transductive"``, while
            a running mean and variance is kept for each number of inner steps, which evaluation then normalises by
            (Antoniou et al. 2019, MAML++).
        kept: those of ``"per_step"``.

    Raises:
        ConfigError: the policy is unknown, or ``"running"`` is asked of a layer without running statistics.
    """

    def __init__(self, network: nn.Module, policy: NormPolicy, kept: StepStatistics | None = None) -> None:
        if policy not in get_args(NormPolicy):
            raise ConfigError(
                f"norm is {policy!r}, but it must be one of {', '.join(get_args(NormPolicy))}; "
                "'transductive' is the MAML paper's choice"
            )
        for name, layer in network.named_modules():
            if policy == "running" and isinstance(layer, _BatchNorm) and layer.running_mean is None:
                raise ConfigError(
                    f"norm is 'running', but layer {name or 'backbone'} keeps no running statistics; "
                    "use norm='transductive' or norm='support'"
                )
        self.policy: NormPolicy = policy
        self._kept = kept

    def replace(self, name: str, layer: nn.Module) -> nn.Module | None:
        """What stands for a layer in our copy of the network; ``None`` for a copy."""
        if not isinstance(layer, _BatchNorm) or not _is_plain(layer):
            return None
        return TaskBatchNorm(layer, self.policy, self._kept, name)


class TaskBatchNorm(nn.Module):
    """Batch normalisation over the examples of one task; the same in ``train()`` and ``eval()``, and without a state.

    It is no subclass of torch's, so that ``sync_batchnorm=True`` leaves it alone: statistics of several ranks are of several
    tasks.

    Args:
        source: the layer whose parameters (the same objects) and ``eps`` are taken over, and, for the policy ``"running"``, its
            buffers.
        policy: see :class:`TaskNorm`.
        kept: the statistics of the policy ``"per_step"``.
        name: of the layer in them.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, source: _BatchNorm, policy: NormPolicy, kept: StepStatistics | None, name: str) -> None:
        super().__init__()
        self.eps = source.eps
        self.policy: NormPolicy = policy
        self.weight, self.bias = source.weight, source.bias
        if policy == "running":
            self.register_buffer("running_mean", source.running_mean)
            self.register_buffer("running_var", source.running_var)
        self._name = name
        self._kept = (kept,)  # in a tuple, so that its buffers are not ours too
        self._momentum = 0.1 if source.momentum is None else source.momentum

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` of shape ``[n, C, ...]`` over all axes but the channel's."""
        if _packing.get():
            with keeping_everything():
                return self._normalise(x, False, False)
        return self._normalise(x, False, False)

    def run_block(self, x: Tensor, convolution: nn.Conv2d, pools: bool, rectifies: bool) -> Tensor:
        """The convolution of ``x`` ``[n, C, H, W]``, this normalisation, 2x2 max-pooling and rectification, fused."""
        assert not isinstance(convolution.padding, str)
        geometry = Geometry(
            _pair(convolution.stride), _pair(convolution.padding), _pair(convolution.dilation), convolution.groups
        )
        weight = convolution.weight
        if _packing.get():
            return _finish(self(convolution(x)), pools, rectifies)
        if pools and self._is_transductive() and is_own("norm") and has_short_patches(weight, geometry):
            return first_block(x, weight, geometry, self.weight, self.bias, self.eps, rectifies)
        return self._normalise(convolution(x), pools, rectifies)

    def _is_transductive(self) -> bool:
        per_step = self.policy == "per_step" and (not self.training or _recording.get())
        return _overruled.get() or (self.policy != "running" and _current.get().rows is None and not per_step)

    def _normalise(self, x: Tensor, pools: bool, rectifies: bool) -> Tensor:
        if _overruled.get():
            return _by_task(x, self.weight, self.bias, self.eps, pools, rectifies)
        if self.policy == "running":
            return _finish(
                _affine(x, self.running_mean, self.running_var, self.weight, self.bias, self.eps), pools, rectifies
            )
        if self.policy == "per_step":
            (kept,) = self._kept
            assert kept is not None
            mean, var = kept.of(self._name)
            step = min(_current.get().step, len(mean) - 1)
            if not self.training:
                return _finish(_affine(x, mean[step], var[step], self.weight, self.bias, self.eps), pools, rectifies)
            if _recording.get():
                self._record(x.detach(), mean[step], var[step])
        return _by_task(x, self.weight, self.bias, self.eps, pools, rectifies)

    @torch.no_grad()
    def _record(self, x: Tensor, *kept: Tensor) -> None:
        for row, found in zip(kept, _moments(x), strict=True):
            row.lerp_(found.to(row.dtype), self._momentum)


class NormOperators(OwnOperators):
    """:class:`OwnOperators`, and ``F.batch_norm`` with the statistics that a policy says, writing none.

    A call with ``training=False`` in a network that trains is a normalisation that is frozen on purpose: it stays as it is.

    Within activation checkpointing everything is kept: its second forward pass would come when the weights that were handed in
    are gone, and be that of other weights, silently.

    Args:
        policy: see :class:`TaskNorm`.
        evaluating: whether the network is in ``eval()``, so that a call says nothing of what it does in training.
        frozen: whether its calls are frozen in training, so that they are in evaluation.
        checkpoints: whether there is activation checkpointing.
    """

    answered = OwnOperators.answered | ATTENTION | {F.batch_norm, torch.batch_norm, torch._weight_norm}

    def __init__(
        self, policy: NormPolicy, evaluating: bool = False, frozen: bool = False, checkpoints: bool = False
    ) -> None:
        super().__init__()
        self._checkpoints = checkpoints
        self._policy, self._leaves_frozen = policy, frozen or not evaluating

    def __enter__(self) -> Any:
        self._token = _packing.set(self._checkpoints)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        _packing.reset(self._token)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if self._checkpoints:
            with keeping_everything():
                return super().__torch_function__(func, types, args, kwargs)
        if func not in self.answered:
            return func(*args, **kwargs) if kwargs else func(*args)
        return self.answer(func, args, kwargs or {})

    def answer(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func is F.batch_norm or func is torch.batch_norm:
            read = _read_batch_norm if func is F.batch_norm else _read_torch_batch_norm
            call = read(*args, **kwargs)
            if call.training or not self._leaves_frozen:
                return self._normalise(call)
        if func in ATTENTION:
            return attend(func, args, kwargs)
        if func is torch._weight_norm:
            return normalise_weight(*args, **kwargs)
        return super().answer(func, args, kwargs)

    def _normalise(self, call: _Call) -> Tensor:
        x, mean, var, weight, bias, _, eps = call
        if self._policy != "running":
            return _by_task(x, weight, bias, eps)
        if mean is None or var is None:
            raise ConfigError(
                "norm is 'running', but the backbone normalises by F.batch_norm without running statistics; use "
                "norm='transductive' or norm='support'"
            )
        return _affine(x, mean, var, weight, bias, eps)


class _Call(NamedTuple):
    x: Tensor
    mean: Tensor | None
    var: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    training: bool
    eps: float


def _read_batch_norm(
    input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None,
    bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> _Call:  # fmt: skip
    return _Call(input, running_mean, running_var, weight, bias, training, eps)


def _read_torch_batch_norm(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor | None, running_var: Tensor | None,
    training: bool, momentum: float, eps: float, cudnn_enabled: bool,
) -> _Call:  # fmt: skip
    return _Call(input, running_mean, running_var, weight, bias, training, eps)


def _is_plain(layer: _BatchNorm) -> bool:
    """Whether the layer computes what torch's own does, with parameters of its own."""
    stock = type(layer).forward in (_BatchNorm.forward, SyncBatchNorm.forward) and "forward" not in layer.__dict__
    held = {"weight", "bias"} <= layer._parameters.keys()
    return stock and held and not is_parametrized(layer)


def _by_task(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, pools: bool = False, rectifies: bool = False
) -> Tensor:
    rows = _current.get().rows
    if rows is None and is_own("norm") and 2 <= x.ndim <= 4:
        as_images = x.reshape(*x.shape, *(1,) * (4 - x.ndim))
        y = normalise(as_images, weight, bias, eps, pools, rectifies)
        return y if x.ndim == 4 else y.flatten(x.ndim - 1)
    return _finish(_affine(x, *_moments(x if rows is None else x[:rows]), weight, bias, eps), pools, rectifies)


def _affine(x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    scale = torch.rsqrt(var + eps)
    if weight is not None:
        scale = scale * weight
    shift = -mean * scale
    if bias is not None:
        shift = shift + bias
    shape = (1, -1) + (1,) * (x.ndim - 2)
    return (x * scale.view(shape) + shift.view(shape)).to(x.dtype)


def _finish(x: Tensor, pools: bool, rectifies: bool) -> Tensor:
    x = F.max_pool2d(x, 2) if pools else x
    return x.relu() if rectifies else x


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance ``[C]`` of ``x`` ``[n, C, ...]``, as torch's var_mean but some 40 times faster on a CPU."""
    # bf16 carries 8 bits of mantissa: a mean over n*H*W values has to be summed in fp32
    x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    axes = [axis for axis in range(x.ndim) if axis != 1]
    mean = x.mean(axes, keepdim=True)
    return mean.flatten(), ((x - mean) ** 2).mean(axes)


def _pair(value: tuple[int, ...]) -> tuple[int, int]:
    return value[0], value[1]
