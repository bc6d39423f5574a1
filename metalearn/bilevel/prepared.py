"""What an inner loss gets at one ``x``: the batch itself, or what ``prepare`` makes of it, made once for all inner steps.

The inner steps at ``x`` differ in ``y`` alone. What they compute from ``x`` and one batch has the same Jacobian ``C`` in all of
them. Reverse mode sums their cotangents first, ``sum_t C' u_t = C' (sum_t u_t)``, and goes back through ``C`` once.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from metalearn.bilevel.checks import explain_failure
from metalearn.bilevel.oracles import Oracles, Sample
from metalearn.bilevel.trees import Tree

__all__ = ["Prepared"]


class Prepared:
    """The inner samples at one ``x``; of a batch that comes again in the next step, as one object, what was made before.

    Attributes:
        x: the outer point, a leaf that requires gradients where :meth:`pull_back` is called.
    """

    def __init__(self, oracles: Oracles, x: Tensor) -> None:
        """Begin at ``x``, ``[P]`` or ``[B, P]``; gradients reach it if it requires them."""
        self.x = x
        self._oracles = oracles
        self._batch: Tree = None
        self._sample: Sample | None = None
        self._outputs: list[Tensor] = []
        self._leaves: list[Tensor] = []

    def of(self, sample: Sample) -> Sample:
        """What ``inner_loss`` gets for a sample; its tensors are leaves."""
        if self._sample is None or sample.data is not self._batch:
            self._batch, self._sample = sample.data, self._cut(self._oracles.prepare(self.x, sample))
        return self._sample._replace(weight=sample.weight)

    def pull_back(self, end: Tensor, cotangent: Tensor) -> Tensor:
        """``d <end, cotangent> / dx``, through ``x`` itself and once through each preparation.

        Args:
            end: computed from ``x`` and from the samples; the last iterate.
            cotangent: like ``end``.
        """
        if not end.requires_grad:
            return torch.zeros_like(self.x)
        of_x, *of_leaves = torch.autograd.grad(end, [self.x, *self._leaves], cotangent, allow_unused=True)
        reached = [(out, grad) for out, grad in zip(self._outputs, of_leaves, strict=True) if grad is not None]
        total = torch.zeros_like(self.x) if of_x is None else of_x.detach()
        if reached:
            outputs, grads = zip(*reached, strict=True)
            with explain_failure("the derivative of prepare", x=self.x):
                (through,) = torch.autograd.grad(outputs, self.x, grads, materialize_grads=True)
            total = total + through.detach()  # up to torch 2.6 a gradient that is not there asks for one
        return total

    def _cut(self, sample: Sample) -> Sample:
        """Cut the graph behind the tensors of a sample that has been prepared; their two sides are kept."""
        if not sample.is_prepared:
            return sample
        values, spec = tree_flatten(sample.data)
        for place, value in enumerate(values):
            if not isinstance(value, Tensor) or not value.requires_grad:
                continue
            values[place] = value.detach()
            if self.x.requires_grad:
                values[place].requires_grad_()
                self._outputs.append(value)
                self._leaves.append(values[place])
        return sample._replace(data=tree_unflatten(values, spec))
