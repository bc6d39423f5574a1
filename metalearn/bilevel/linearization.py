"""The inner gradient at a point with its graph: products with ``H = grad_yy g`` and ``J = grad_xy g`` are taken from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from metalearn.bilevel.counts import Count

__all__ = ["Linearization"]


class Linearization:
    """``grad_y g`` at a point with its graph, from which any number of second-derivative products are taken and counted.

    Attributes:
        gradient: ``grad_y g`` with its graph, ``[D]`` or ``[B, D]``.
        y: the leaf that it was computed at, likewise.
        reached: what :meth:`pull_back` differentiates by, such as ``x``.
    """

    def __init__(
        self,
        gradient: Tensor,
        y: Tensor,
        reached: Sequence[Tensor],
        count: Count,
        guard: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """Hold a gradient.

        Args:
            gradient: see the class.
            y: see the class.
            reached: see the class.
            count: is told of every product.
            guard: a context in which second derivatives are taken, to explain those that fail.
        """
        self.gradient, self.y, self.reached = gradient, y, list(reached)
        self._count, self._guard = count, guard
        self._counted = False

    @property
    def residual(self) -> Tensor:
        """``grad_y g`` without its graph; it counts as a gradient when it is first asked for."""
        if not self._counted:
            self._count("gc_g")
            self._counted = True
        return self.gradient.detach()

    def hvp(self, v: Tensor) -> Tensor:
        """``H v``, ``[D]`` or ``[B, D]``."""
        self._count("hvp")
        return self._products(v, [self.y])[0]

    def pull_back(self, v: Tensor) -> list[Tensor]:
        """``-J v`` for each tensor that is reached, like that tensor: summed over problems that share it."""
        self._count("jvp")
        return self._products(-v, self.reached) if self.reached else []

    def depends_on(self, tensor: Tensor) -> bool:
        """Whether ``grad_y g`` was computed from a tensor that requires gradients."""
        if not self.gradient.requires_grad:
            return False
        with self._guard():
            (product,) = torch.autograd.grad(
                self.gradient, tensor, torch.zeros_like(self.gradient), retain_graph=True, allow_unused=True
            )
        return product is not None

    def _products(self, v: Tensor, by: list[Tensor]) -> list[Tensor]:
        if not self.gradient.requires_grad:  # g is linear in y
            return [torch.zeros_like(tensor) for tensor in by]
        with self._guard():
            products = torch.autograd.grad(self.gradient, by, v, retain_graph=True, materialize_grads=True)
        return [product.detach() for product in products]
