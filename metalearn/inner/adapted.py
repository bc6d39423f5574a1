"""A network adapted to one task."""

from __future__ import annotations

import torch
from torch import Tensor

from metalearn.inner.learner import Learner, evaluating
from metalearn.inner.rules import Params

__all__ = ["AdaptedModel"]


class AdaptedModel:
    """What :meth:`MetaModule.adapt` returns: ``adapted(x)`` gives the logits of one task's queries.

    Holds its own copies of all tensors, so it stays what it is when the module is trained on. Works in any grad mode and
    leaves the module that it came from as it was.

    Attributes:
        params: the tensors of the network by name, after adaptation.
    """

    def __init__(self, learner: Learner, params: Params, support: Tensor, steps: int, ways: int | None = None) -> None:
        self._learner = learner
        self._ways = ways
        self._steps = steps
        self._support = support.detach().clone()
        self.params = {name: value.detach().clone() for name, value in params.items()}

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """Logits ``[n, N]`` of queries ``x`` ``[n, ...]``, without a graph."""
        with evaluating(self._learner.backbone):
            support, query = self._learner.encode(self.params, self._support, x)
            return self._learner.query_logits(self.params, support, query, self._steps)[..., : self._ways]

    def probabilities(self, x: Tensor) -> Tensor:
        """Class probabilities ``[n, N]`` of queries ``x`` ``[n, ...]``."""
        return self(x).softmax(-1)
