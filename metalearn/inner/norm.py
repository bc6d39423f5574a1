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

__all__ = ["NormPolicy", "TaskBatchNorm", "own_batch_norm", "statistics"]

NormPolicy = Literal["transductive", "support", "running"]


class _Statistics(NamedTuple):
    rows: int | None = None
    vectorized: bool = False


_ALL = _Statistics()
_current: ContextVar[_Statistics] = ContextVar("metalearn_statistics", default=_ALL)


@contextlib.contextmanager
def statistics(rows: int | None = None, vectorized: bool = False) -> Iterator[None]:
    """Within this context every :class:`TaskBatchNorm` takes its statistics from the first ``rows`` examples.

    Args:
        rows: the number of leading examples that the statistics are taken from; ``None`` for all.
        vectorized: the forward pass runs under ``torch.func.vmap``, where only elementary operators are exact.
    """
    token = _current.set(_Statistics(rows, vectorized))
    try:
        yield
    finally:
        _current.reset(token)


class TaskBatchNorm(nn.Module):
    """Batch normalisation over the examples of one task; the same in ``train()`` and ``eval()``, and never stateful.

    Keeps the parameter and buffer names of ``torch.nn.BatchNorm*``, so that state dicts are interchangeable. It is no
    subclass of it, so that ``sync_batchnorm=True`` leaves it alone: statistics of several ranks are of several tasks.

    Args:
        source: the layer whose parameters (the same objects), buffers and ``eps`` are taken over.
        policy: ``"transductive"``: statistics of whatever set is passed in; ``"support"``: of the support set alone, so
            that a query's prediction does not depend on the other queries; ``"running"``: the stored running
            statistics, never updated (for a pretrained backbone).
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    running_mean: Tensor | None
    running_var: Tensor | None

    def __init__(self, source: _BatchNorm, policy: NormPolicy) -> None:
        super().__init__()
        self.eps = source.eps
        self.num_features = source.num_features
        self.policy: NormPolicy = policy
        self.weight, self.bias = source.weight, source.bias
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, getattr(source, name))
        self.train(source.training)

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, policy={self.policy!r}"

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` of shape ``[n, C, ...]`` over all axes but the channel's."""
        rows, vectorized = _current.get()
        if self.policy == "running":
            assert self.running_mean is not None
            assert self.running_var is not None
            return self._normalise(x, self.running_mean, self.running_var)
        if rows is None and not vectorized:
            return F.batch_norm(x, None, None, self.weight, self.bias, training=True, momentum=0.0, eps=self.eps)
        # bf16 carries 8 bits of mantissa: a mean over n*H*W values has to be summed in fp32
        head = (x if rows is None else x[:rows]).float() if x.dtype in (torch.float16, torch.bfloat16) else x[:rows]
        axes = [axis for axis in range(x.ndim) if axis != 1]
        var, mean = torch.var_mean(head, axes, correction=0)
        return self._normalise(x, mean, var)

    def _normalise(self, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        scale = torch.rsqrt(var + self.eps)
        if self.weight is not None:
            scale = scale * self.weight
        shift = -mean * scale
        if self.bias is not None:
            shift = shift + self.bias
        shape = (1, -1) + (1,) * (x.ndim - 2)
        return (x * scale.view(shape) + shift.view(shape)).to(x.dtype)


def own_batch_norm(module: nn.Module, policy: NormPolicy) -> nn.Module:
    """Replace, in place, every ``BatchNorm`` layer of ``module`` by a :class:`TaskBatchNorm` with the same parameters.

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
            layer.policy = policy
        if isinstance(layer, (_BatchNorm, TaskBatchNorm)) and policy == "running" and layer.running_mean is None:
            raise ConfigError(
                f"norm is 'running', but layer {name or 'backbone'} keeps no running statistics; "
                "use norm='transductive' or norm='support'"
            )
        if isinstance(layer, _BatchNorm):
            return TaskBatchNorm(layer, policy)
        for child_name, child in list(layer.named_children()):
            replacement = owned(child, f"{name}.{child_name}".lstrip("."))
            if replacement is not child:
                setattr(layer, child_name, replacement)
        return layer

    return owned(module, "")
