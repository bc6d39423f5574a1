"""What queries must be, and what is said of those that a network cannot take."""

from __future__ import annotations

from torch import Tensor

from metalearn.errors import ShapeError, first_line

__all__ = ["check_queries", "explain_queries"]


def check_queries(x: Tensor, like: Tensor) -> Tensor:
    """Queries of the kind of number that the network takes.

    Args:
        x: what a user gave.
        like: examples such as the network was adapted to.

    Raises:
        ShapeError: it is no tensor, is empty, or has an entry that is not finite.
    """
    if not isinstance(x, Tensor):
        raise ShapeError(f"the queries are a {type(x).__name__}, but they must be a tensor; use torch.as_tensor")
    if x.ndim == 0 or len(x) == 0:
        raise ShapeError(f"the queries have shape {list(x.shape)}, but there must be at least one; leave the call out")
    if x.is_floating_point() and like.is_floating_point() and x.dtype != like.dtype:
        x = x.to(like.dtype)
    if x.is_floating_point() and not bool(x.isfinite().all()):
        row = int((~x.isfinite()).reshape(len(x), -1).any(1).int().argmax())
        raise ShapeError(f"query {row} has an entry that is not finite, but all must be; check the data")
    return x


def explain_queries(x: Tensor, like: Tensor, error: Exception) -> ShapeError:
    """What to say of queries for which the network has raised an error."""
    reason = first_line(error)
    count = str(len(like)) if len(like) else "n"
    shape = f"[{', '.join([count, *map(str, like.shape[1:])])}]"
    return ShapeError(
        f"queries of shape {list(x.shape)} ({x.dtype}, {x.device.type}) cannot be taken ({reason}); they must be like the "
        f"support set of shape {shape} ({like.dtype}, {like.device.type})"
    )
