"""The mean feature of each class of a support set."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["ClassMeans", "average_classes"]


class ClassMeans(NamedTuple):
    """Of each class of a task.

    Attributes:
        means: ``[..., N, F]``; 0 where a class has no examples.
        counts: the examples of each, ``[..., N]``, as floats.
    """

    means: Tensor
    counts: Tensor


def average_classes(features: Tensor, labels: Tensor, ways: int) -> ClassMeans:
    """Average features ``[..., n, F]`` over the examples of each of ``ways`` classes.

    Args:
        features: of the examples.
        labels: of the examples, ``[..., n]``; a label that is no class is left out.
        ways: how many classes there are, ``N``.

    Example:
        >>> import torch
        >>> from metalearn.inner.class_means import average_classes
        >>> average_classes(torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([0, 0, 1]), ways=2).means
        tensor([[2.],
                [5.]])
    """
    classes = torch.arange(ways, device=labels.device).unsqueeze(-1)
    members = (labels.unsqueeze(-2) == classes).to(features.dtype)
    counts = members.sum(-1)
    return ClassMeans(members @ features / counts.unsqueeze(-1).clamp(min=1), counts)
