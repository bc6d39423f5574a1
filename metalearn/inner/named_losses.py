"""The losses that have a name."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from metalearn.inner.bands import GaussianNLL, Quantiles

__all__ = ["NAMED", "binary_cross_entropy", "huber", "mean_absolute_error", "mean_squared_error"]


def mean_squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """``mean((o - y)^2)``, written out because ``F.mse_loss`` has no forward-over-reverse derivative."""
    return ((outputs - targets) ** 2).mean()


def mean_absolute_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """``mean(|o - y|)``."""
    return (outputs - targets).abs().mean()


def huber(outputs: Tensor, targets: Tensor) -> Tensor:
    """``e^2 / 2`` where the error ``e`` is below 1, else ``|e| - 1/2`` (Huber 1964); torch's lacks the same derivative."""
    error = (outputs - targets).abs()
    near = error.clamp(max=1.0)
    return (near * (error - 0.5 * near)).mean()


def binary_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean over examples and labels of the cross-entropy of ``sigmoid(o)``; targets are 0, 1, or between."""
    return F.binary_cross_entropy_with_logits(outputs, targets.to(outputs.dtype))


NAMED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": F.cross_entropy,
    "mse": mean_squared_error,
    "l1": mean_absolute_error,
    "huber": huber,
    "gaussian_nll": GaussianNLL(),
    "quantile": Quantiles(),
    "binary_cross_entropy": binary_cross_entropy,
}
