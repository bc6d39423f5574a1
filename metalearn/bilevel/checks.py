"""What users pass in, told in one line where it is of the wrong kind."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Real
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node
from torch.utils._pytree import tree_flatten

from metalearn.errors import BilevelError, ConfigError, MetalearnError

__all__ = ["calling", "check_kind", "check_number", "check_second_derivative", "check_whole", "shown"]

RAISED = (TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError, NotImplementedError)
"""What a function raises that gets something else than it expects."""


def shown(value: Any) -> str:
    """A value in a few words of one line."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)}"
    if isinstance(value, FunctionType):
        return f"the function {value.__name__}"
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 or isinstance(value, type) else _article(type(value).__name__)


def check_kind(what: str, value: Any, kind: type, remedy: str) -> None:
    """Raise a ConfigError unless a value is of a class."""
    if not isinstance(value, kind):
        raise ConfigError(f"{what} is {shown(value)}, but it must be {_article(kind.__name__)}; {remedy}")


def check_number(what: str, value: Any, remedy: str) -> None:
    """Raise a ConfigError unless a value is a number, or a tensor of one; ``what`` names it, as ``CG(damping`` or ``weight``."""
    if not isinstance(value, Real) and not (
        isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex()
    ):
        raise ConfigError(f"{_said(what, value)}, but it must be a number; {remedy}")


def check_whole(what: str, value: Any, least: int | None, remedy: str) -> None:
    """Raise a ConfigError unless a value is a whole number, and at least so large."""
    check_number(what, value, remedy)
    if not math.isfinite(value) or value != int(value):
        above = "" if least is None else f", at least {least}"
        raise ConfigError(f"{_said(what, value)}, but it must be a whole number{above}; {remedy}")
    if least is not None and value < least:
        raise ConfigError(f"{_said(what, value)}, but it must be at least {least}; {remedy}")


def check_second_derivative(end: Node) -> None:
    """Raise if a graph holds torch's fused weight normalisation, whose second derivative differs from difference quotients.

    Args:
        end: the last node of the graph.

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
        following = {each for each, _ in node.next_functions if each is not None} - seen
        seen |= following
        left += following


def _article(name: str) -> str:
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"


def _said(what: str, value: Any) -> str:
    return f"{what}={shown(value)})" if "(" in what else f"{what} is {shown(value)}"


@contextmanager
def calling(name: str, **given: Any) -> Iterator[None]:
    """Where a user's function fails, or cannot be differentiated, say which one, with what it got; the error is chained."""
    try:
        yield
    except MetalearnError:
        raise
    except torch.OutOfMemoryError:
        raise
    except RAISED as error:
        if "escaped from inside a function being vmapped" in str(error):  # which the caller explains
            raise
        said = " ".join((str(error).strip().splitlines() or [""])[0].split())[:200]
        got = ", ".join(f"{key} {_shapes(value)}" for key, value in given.items())
        if "batch" in given and given["batch"] is None:
            remedy = "give data by problem.with_batch(outer=..., inner=...) or stream=..., if it needs a batch"
        elif "_scaled_dot_product" in said and "derivative" in said:
            remedy = "call it within torch.nn.attention.sdpa_kernel(SDPBackend.MATH), whose attention has one"
        else:
            remedy = "check its arguments, their shapes and dtypes, and its operations"
        raise BilevelError(
            f"{name} failed with {type(error).__name__}: {said}{'' if said.endswith('.') else '.'} It got {got}; {remedy}"
        ) from error


def _shapes(tree: Any) -> str:
    if tree is None:
        return "None"
    leaves = tree_flatten(tree)[0]
    few = [_shape(leaf) for leaf in leaves[:4]]
    return ", ".join(few) + (f" and {len(leaves) - 4} more" if len(leaves) > 4 else "")


def _shape(leaf: Any) -> str:
    if not isinstance(leaf, Tensor):
        return shown(leaf)
    return f"{list(leaf.shape)} {str(leaf.dtype).removeprefix('torch.')}"
