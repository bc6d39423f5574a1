"""The network without anything of ours."""

from __future__ import annotations

from torch import Tensor

from metalearn.inner.learner import Learner
from metalearn.inner.rules import Params

__all__ = ["PlainLearner"]


class PlainLearner(Learner):
    """The network as it is given, called on each set as a whole, without anything of ours: what other ways are compared with.

    Its batch normalisation is torch's own, which in training is that of the policy ``"transductive"``.
    """

    def __init__(self, learner: Learner) -> None:
        self.__dict__.update(learner.as_given().__dict__)
        self._adapts = learner.adapts

    def adapts(self, name: str) -> bool:
        return self._adapts(name)

    def query_logits(self, params: Params, support: Tensor, query: Tensor, step: int = 0) -> Tensor:
        return self._call(params, query)

    def _call(self, params: Params, x: Tensor) -> Tensor:
        return self._one_tensor(self.call(params, x))

    def call(self, params: Params, x: Tensor) -> object:
        """Whatever the network gives."""
        own = x.clone()
        output: object = self.structure.call(self.backbone, self._tensors(self.backbone, params), (own,))
        if own._version:
            self.structure.keeps_input[self._evaluates] = False
        return output
