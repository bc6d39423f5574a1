"""Reverse mode through inner steps, which is what ITD differentiates: its oracle calls are counted where they are made."""

from __future__ import annotations

from torch import Tensor

from metalearn.bilevel.counts import Count

__all__ = ["count_step"]


def count_step(gradient: Tensor, y: Tensor, count: Count) -> Tensor:
    """Count the gradient of an inner step now, and its products when a backward pass goes through it.

    That pass takes one product with ``J``. It takes one with ``H`` if the step's point depends on what is differentiated by; a
    constant start does not.

    Args:
        gradient: ``grad_y g`` at the point, with a graph if the hypergradient passes through it.
        y: the point, before it was made a leaf.
        count: is called for each of them.

    Returns:
        the gradient.
    """
    count("gc_g")
    if gradient.requires_grad:
        moved = y.requires_grad

        def count_products(_: Tensor) -> None:
            count("jvp")
            if moved:
                count("hvp")

        gradient.register_hook(count_products)
    return gradient
