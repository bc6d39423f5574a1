"""How an iteration is seen to diverge: a step size that is too large, a gradient that grows, an entry that is not finite."""

from __future__ import annotations

import torch
from torch import Tensor

from metalearn.errors import ConfigError, DivergenceError

__all__ = ["GROWTH", "check_growth", "check_step_size", "describe_place", "make_divergence", "measure_growth"]

GROWTH = 1e3
"""A residual that has grown by this is not a transient of momentum or of a loss that is not quite convex."""


def check_step_size(name: str, step_size: float, largest: float, L: float) -> None:
    """Raise a ConfigError if a step size is not below the largest stable one."""
    if step_size >= largest:
        raise ConfigError(
            f"{name} is {step_size:g}, but with L = {L:g} it must be below {largest:g}, where the method starts to "
            f"diverge; use {1 / L:g} (1/L)"
        )


def measure_growth(first: Tensor, last: Tensor) -> Tensor:
    """Return ``last/first``, or 0 where that is rounding."""
    return torch.where(last <= torch.finfo(last.dtype).eps ** 0.5, 0.0, last / first)


def check_growth(first: Tensor, last: Tensor, steps: int, step_size: float, outer: int | None = None) -> None:
    """Raise a DivergenceError if the inner gradient has grown a thousandfold, or is not finite."""
    floor = torch.finfo(last.dtype).eps ** 0.5  # below it growth is rounding
    if bool((((last <= GROWTH * first) | (last <= floor)) & last.isfinite()).all()):
        return
    if not bool(last.isfinite().all()):
        raise make_divergence("grad_y g", steps, step_size, outer)
    worst = int((last / first).nan_to_num(float("inf")).argmax())
    raise DivergenceError(
        f"|grad_y g| went from {float(first.flatten()[worst]):.3g} to {float(last.flatten()[worst]):.3g} by inner "
        f"step {steps}{describe_place(outer)}, but it must shrink where inner_loss is strongly convex; lower "
        f"step_size={step_size:g}, or add regularisation"
    )


def make_divergence(term: str, step: int, step_size: float, outer: int | None) -> DivergenceError:
    """Return the error of a term that is not finite."""
    # at the start the inner solver has moved nothing yet
    first = step == 0 and term == "grad_y g"
    remedy = "check inner_loss and its data, or lower the outer step size" if first else (
        f"lower step_size={step_size:g}, or check inner_loss and its data"
    )  # fmt: skip
    return DivergenceError(
        f"{term} is not finite at inner step {step}{describe_place(outer)}, but all entries must be; {remedy}"
    )


def describe_place(outer: int | None) -> str:
    """Return the clause that names the outer step, if there is one."""
    return "" if outer is None else f" of outer step {outer}"
