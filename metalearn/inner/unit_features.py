"""Features of length one, for heads that compare directions."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from metalearn.inner.head import FeatureLearner, HeadLearner
from metalearn.inner.learner import Learner
from metalearn.inner.network.structure import Mode
from metalearn.inner.rules import Params

__all__ = ["UnitFeatureLearner", "UnitHeadLearner"]


class UnitHeadLearner(HeadLearner):
    """As :class:`HeadLearner`, with features that are divided by their norm; it needs a head that runs alone.

    Example:
        >>> import torch
        >>> from metalearn import MLP
        >>> from metalearn.inner import TaskNorm
        >>> from metalearn.inner.unit_features import UnitHeadLearner
        >>> network = MLP(outputs=5, inputs=8)
        >>> whole = UnitHeadLearner(network, TaskNorm(network, "running"), head="head", needed_by="this example")
        >>> alone = whole.specialised(dict(network.named_parameters()), torch.randn(4, 8), "as_it_is")
        >>> features, _ = alone.encode(alone.outer(), torch.randn(3, 8), torch.randn(3, 8))
        >>> torch.allclose(features.norm(dim=1), torch.ones(3))
        True
    """

    def specialised(self, params: Params, x: Tensor, mode: Mode) -> Learner:
        alone = super().specialised(params, x, mode)
        return UnitFeatureLearner(alone) if isinstance(alone, FeatureLearner) else alone


class UnitFeatureLearner(FeatureLearner):
    """As :class:`FeatureLearner`, with features that are divided by their norm.

    Args:
        alone: computes the features.
    """

    def __init__(self, alone: FeatureLearner) -> None:
        self.__dict__.update(alone.__dict__)

    def _features(self, params: Params, x: Tensor) -> Tensor:
        return F.normalize(super()._features(params, x), dim=-1)
