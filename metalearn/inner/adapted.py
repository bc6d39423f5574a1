"""A network adapted to one task."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from metalearn.errors import ConfigError, MetalearnError, ShapeError
from metalearn.inner.ambient import own_kernels
from metalearn.inner.learner import Learner
from metalearn.inner.network.copying import deepcopy_state
from metalearn.inner.rules import Params

__all__ = ["AdaptedModel"]

log = logging.getLogger(__name__)

_WARNED: WeakSet[nn.Module] = WeakSet()
"""Networks of which it was said that a single query is normalised otherwise."""


class AdaptedModel:
    """What :meth:`MetaModule.adapt` returns: ``adapted(x)`` gives the logits of one task's queries.

    Holds its own copies of all tensors, so it stays what it is when the module is trained on. Works in any grad mode and
    leaves the module that it came from as it was.

    Attributes:
        params: the tensors of the network by name, after adaptation.

    Example:
        >>> import torch
        >>> from metalearn import MAML, MLP, AdaptedModel, Batch
        >>> module = MAML(MLP(outputs=5, inputs=8), inner_steps=3)
        >>> adapted = module.adapt(Batch(torch.randn(5, 8), torch.arange(5)))
        >>> isinstance(adapted, AdaptedModel), adapted.probabilities(torch.randn(4, 8)).shape
        (True, torch.Size([4, 5]))
    """

    def __init__(
        self,
        learner: Learner,
        params: Params,
        support: Tensor,
        steps: int,
        ways: int | None = None,
        classes: bool = True,
        operators: Sequence[str] = (),
    ) -> None:
        self._learner = learner
        self._ways = ways
        self._classes = classes
        self._operators = tuple(operators)
        self._steps = steps
        self._support = support.detach().clone()
        self.params = {name: value.detach().clone() for name, value in params.items()}
        self._buffers = learner.buffers()

    def __getstate__(self) -> dict[str, Any]:
        return dict(self.__dict__)  # Python 3.10 has no default one

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return deepcopy_state(self, self._learner.backbone, memo)

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """Logits ``[n, N]`` of queries ``x`` ``[n, ...]``, without a graph.

        Under the norm policy ``"transductive"`` queries are normalised by their own statistics, all of a call together. A single
        query has none: it is normalised by those of the support set, as under ``"support"``, which is said once.

        Raises:
            ShapeError: there are no queries, they are not finite, or the network cannot take them.
        """
        x = self._check(x)
        try:
            with self._running(x) as learner, own_kernels(*self._operators):
                tensors = {name: value.clone() for name, value in self._buffers.items()} | self.params
                support, query = learner.encode(tensors, self._support, x)
                outputs = learner.query_logits(tensors, support, query, self._steps)
        except (RuntimeError, ValueError, IndexError, AssertionError, TypeError) as error:
            if isinstance(error, (MetalearnError, torch.OutOfMemoryError)):
                raise
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")
            raise ShapeError(
                f"queries of shape {list(x.shape)} ({x.dtype}, {x.device.type}) cannot be taken ({reason}); they must be like "
                f"the support set of shape {list(self._support.shape)} ({self._support.dtype}, {self._support.device.type})"
            ) from error
        return outputs if self._ways is None else outputs[:, : self._ways]

    def probabilities(self, x: Tensor) -> Tensor:
        """Class probabilities ``[n, N]`` of queries ``x`` ``[n, ...]``.

        Raises:
            ConfigError: the network was adapted to values, not to class labels.
        """
        if not self._classes:
            raise ConfigError(
                "probabilities are asked of a network that was adapted to targets which are no class labels; use adapted(x), its "
                "outputs"
            )
        return self(x).softmax(1)

    def _running(self, x: Tensor) -> contextlib.AbstractContextManager[Learner]:
        learner = self._learner
        if len(x) == 1 and learner.needs_many_queries:
            if learner.backbone not in _WARNED:
                _WARNED.add(learner.backbone)
                log.warning(
                    "a single query has no batch statistics of its own, so it is normalised by those of the support set, as "
                    "under norm='support'; pass queries together for norm='transductive'"
                )
            learner = learner.with_support_statistics()
        return learner.running("evaluating")

    def _check(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor):
            raise ShapeError(f"the queries are a {type(x).__name__}, but they must be a tensor; use torch.as_tensor")
        if x.ndim == 0 or len(x) == 0:
            raise ShapeError(
                f"the queries have shape {list(x.shape)}, but there must be at least one; leave the call out"
            )
        if x.is_floating_point() and self._support.is_floating_point() and x.dtype != self._support.dtype:
            x = x.to(self._support.dtype)
        if x.is_floating_point() and not bool(x.isfinite().all()):
            row = int((~x.isfinite()).reshape(len(x), -1).any(1).int().argmax())
            raise ShapeError(f"query {row} has an entry that is not finite, but all must be; check the data")
        return x
