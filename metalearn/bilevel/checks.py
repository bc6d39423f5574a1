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

__all__ = ["check_order", "check_second_derivative", "explain_failure"]

RAISED = (TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError, NotImplementedError)
"""What a function raises that gets something else than it expects."""


def check_order(owner: str, mu: float, L: float) -> None:
    """Raise a ConfigError unless ``0 < mu <= L``; a difference of rounding will do."""
    for name, value in (("mu", mu), ("L", L)):
        check_number(name, value, "use 1.0", above=0, owner=owner, loose=True)
    if mu > L * (1 + 1e-9):
        raise ConfigError(f"{owner}(mu={mu:g}, L={L:g}), but mu must be at most L; swap them")


def check_second_derivative(end: Node, borders: Collection[Node | None] = ()) -> None:
    """Raise if a graph holds torch's fused weight normalisation, whose second derivative differs from difference quotients.

    Args:
        end: the last node of the graph.
        borders: nodes that are not looked at, nor what lies behind them.

    Raises:
        BilevelError: it does.
    """
    left, seen = [end], {end}
    while left:
        node = left.pop()
        if node.name().startswith("WeightNormInterfaceBackward"):
            raise BilevelError(
                "inner_loss uses weight_norm, but torch's second derivative of its fused kernel is wrong; compute the weight as "
                "v * (g / torch.linalg.vector_norm(v, dim=..., keepdim=True)) in inner_loss"
            )
        following = {before for before, _ in node.next_functions if before is not None and before not in borders} - seen
        seen |= following
        left += following


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
