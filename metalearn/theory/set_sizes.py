"""The step sizes that a checkpoint's weights were trained with, after an advisor has set them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from metalearn.errors import CheckpointError

__all__ = ["match_sizes"]


def match_sizes(module: Any, sizes: Any) -> None:
    """Multiply a module's inner step sizes so that they are those of a checkpoint.

    They are left alone where they are learned, or where they are not in the proportions of the checkpoint's.

    Args:
        module: takes steps of given sizes.
        sizes: what ``inner_lr`` was: a number, a list or a mapping.

    Raises:
        CheckpointError: these are no step sizes.
    """
    own = getattr(getattr(module, "step_sizes", None), "inner_lr", None)
    if own is None or sizes is None or isinstance(own, str) or isinstance(sizes, str):
        return
    theirs, ours = _by_place(sizes), _by_place(own)
    if not all(_is_size(value) for value in theirs.values()):
        raise CheckpointError(
            f"the checkpoint's callbacks.StepSizeAdvisor.inner_lr is {sizes!r:.80}, but step sizes are finite numbers above 0; "
            "go on from another checkpoint, or leave the advisor out"
        )
    if theirs.keys() != ours.keys():
        return
    factors = [theirs[place] / ours[place] for place in theirs]
    if all(math.isclose(factor, factors[0], rel_tol=1e-6) for factor in factors) and not math.isclose(factors[0], 1.0):
        module.rescale_steps(factors[0])


def _by_place(sizes: Any) -> dict[Any, Any]:
    """The numbers by their name or place."""
    if isinstance(sizes, Mapping):
        return dict(sizes)
    return dict(enumerate(sizes)) if isinstance(sizes, Sequence) and not isinstance(sizes, str) else {"": sizes}


def _is_size(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value > 0
