"""The weights of the query losses after each inner step (MAML++)."""

from __future__ import annotations

__all__ = ["weigh_steps"]


def weigh_steps(inner_steps: int, duration: int | None, step: int) -> list[float] | None:
    """The weights of the query losses after 0, 1, ..., ``inner_steps`` inner steps; ``None`` for the last alone.

    They go linearly from ``1 / inner_steps`` for each of ``1..inner_steps`` to 1 for the last alone (Antoniou et al. 2019,
    section 4, there by epochs).

    Args:
        inner_steps: the number of inner steps.
        duration: over how many outer steps; ``None`` for the last alone from the start.
        step: the outer step.
    """
    if duration is None or step >= duration:
        return None
    left = 1.0 - step / duration
    share = left / inner_steps
    return [0.0, *(share for _ in range(inner_steps - 1)), share + 1.0 - left]
