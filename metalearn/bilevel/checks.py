"""What users pass in, told in one line where it is of the wrong kind."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node
from torch.utils._pytree import tree_flatten

from metalearn.checks import check_number, quote_value
from metalearn.errors import BilevelError, ConfigError, MetalearnError
from metalearn.inner.graph import find_once_differentiable, walk_graph

__all__ = ["check_order", "check_second_derivative", "explain_failure"]

RAISED = (TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError, NotImplementedError)
"""What a function raises that gets something else than it expects."""


def check_order(owner: str, mu: float, L: float) -> None:
    """Raise a ConfigError unless ``0 < mu <= L``; a difference of rounding will do."""
    for name, value in (("mu", mu), ("L", L)):
        check_number(name, value, "use 1.0", above=0, owner=owner, loose=True)
    if mu > L * (1 + 1e-9):
        raise ConfigError(f"{owner}(mu={mu:g}, L={L:g}), but mu must be at most L; swap them")


def check_second_derivative(end: Node, y: Tensor, borders: Collection[Node | None] = ()) -> None:
    """Raise if the second derivative of ``inner_loss`` by ``y`` would be wrong, in silence.

    It is with torch's fused weight normalisation, and with a backward that is ``once_differentiable``.

    Args:
        end: the last node of the loss's graph.
        y: what it is differentiated by.
        borders: nodes that are not looked at, nor what lies behind them.

    Raises:
        BilevelError: it would be.
    """
    if any(node.name().startswith("WeightNormInterfaceBackward") for node in walk_graph(end, borders)):
        raise BilevelError(
            "inner_loss uses weight_norm, but torch's second derivative of its fused kernel is wrong; compute the weight as "
            "v * (g / torch.linalg.vector_norm(v, dim=..., keepdim=True)) in inner_loss"
        )
    once = find_once_differentiable(end, [y], borders)
    if once is not None:
        raise BilevelError(
            f"inner_loss uses {once}, whose backward is once_differentiable, so that its second derivative would be taken for 0; "
            "write that backward with torch's operations, without the decorator"
        )


@contextmanager
def explain_failure(name: str, **arguments: Any) -> Iterator[None]:
    """Where a user's function fails, or cannot be differentiated, say which one, with what it got; the error is chained."""
    try:
        yield
    except MetalearnError:
        raise
    except torch.OutOfMemoryError:
        raise
    except RAISED as error:
        if "escaped from inside a function being vmapped" in str(error):  # the caller explains it
            raise
        reason = " ".join((str(error).strip().splitlines() or [""])[0].split())[:200]
        got = ", ".join(f"{key} {_format_shapes(value)}" for key, value in arguments.items())
        if "batch" in arguments and arguments["batch"] is None:
            remedy = "give data by problem.with_batch(outer=..., inner=...) or stream=..., if it needs a batch"
        elif "_scaled_dot_product" in reason and "derivative" in reason:
            remedy = "call it within torch.nn.attention.sdpa_kernel(SDPBackend.MATH), whose attention has one"
        else:
            remedy = "check its arguments, their shapes and dtypes, and its operations"
        raise BilevelError(
            f"{name} failed with {type(error).__name__}: {reason}{'' if reason.endswith('.') else '.'} It got {got}; {remedy}"
        ) from error


def _format_shapes(tree: Any) -> str:
    if tree is None:
        return "None"
    leaves = tree_flatten(tree)[0]
    few = [_format_shape(leaf) for leaf in leaves[:4]]
    return ", ".join(few) + (f" and {len(leaves) - 4} more" if len(leaves) > 4 else "")


def _format_shape(leaf: Any) -> str:
    if not isinstance(leaf, Tensor):
        return quote_value(leaf)
    return f"{list(leaf.shape)} {str(leaf.dtype).removeprefix('torch.')}"
