"""An algorithm's state outside of a run: made the same on all ranks, and kept in checkpoints as plain tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from metalearn.bilevel.algorithms.base import State
from metalearn.bilevel.problem import BilevelProblem
from metalearn.carried.classes import short
from metalearn.errors import CheckpointError

__all__ = ["average_state", "move_state", "pack_state", "unpack_state"]

TREES = ("x", "y")
OF_LAST_STEP = ("loss", "norm", "certificate", "inner_residual", "dual_residual", "growth")
"""What describes the last step, and is not carried into the next one."""


def pack_state(state: State, gather: Callable[[Tensor], Tensor] | None = None) -> dict[str, Any]:
    """Return the state without ``x``, which the module's parameters hold, and without what describes the last step.

    Args:
        state: an algorithm's.
        gather: of a tensor those of all ranks, ``[ranks, ...]``, where each rank has its own.
    """
    packed: dict[str, Any] = {}
    for name, value in state.items():
        if name == "x" or name in OF_LAST_STEP:
            continue
        leaves = tree_flatten(value)[0] if name in TREES else [value]
        kept = [
            _copy(leaf if gather is None else gather(leaf)) if isinstance(leaf, Tensor) else leaf for leaf in leaves
        ]
        packed[name] = kept if name in TREES else kept[0]
    return packed


def unpack_state(packed: Any, fresh: State, rank: int | None = None) -> State:
    """Return a state that goes on from a packed one.

    Args:
        packed: from :func:`pack_state`.
        fresh: the algorithm's initial state at the restored ``x``, which gives ``x`` and the structure of ``y``.
        rank: whose share to take, where each rank has its own.

    Raises:
        CheckpointError: it belongs to another algorithm, problem or number of ranks.
    """
    expected = {name for name in fresh if name not in OF_LAST_STEP and name != "x"}
    if not isinstance(packed, dict):
        raise _damage("state", packed)
    if packed.keys() != expected:
        odd = ", ".join(sorted(map(str, packed.keys() ^ expected)))
        raise CheckpointError(
            f"the checkpoint's state is of another algorithm: {odd} is in one of them alone; resume with the algorithm of the run"
        )
    # what is absent at first, such as a dual variable, is as large as one of the problem's variables
    sizes = {sum(leaf.numel() for leaf in tree_flatten(fresh[name])[0]) for name in TREES}
    state = dict(fresh)
    for name, value in packed.items():
        leaves, spec = tree_flatten(fresh[name]) if name in TREES else ([fresh[name]], None)
        values = value if name in TREES else [value]
        if not isinstance(values, list) or len(values) != len(leaves):
            raise _damage(name, value)
        pairs = zip(values, leaves, strict=True)
        restored = [_restore_leaf(name, leaf, old, sizes, rank) for leaf, old in pairs]
        state[name] = tree_unflatten(restored, spec) if spec is not None else restored[0]
    return state


def _restore_leaf(name: str, leaf: Any, old: Any, sizes: set[int], rank: int | None) -> Any:
    """Return a value of a checkpoint, which takes the place of a fresh one; of a rank's values its own.

    Raises:
        CheckpointError: it does not fit, or there is none for this rank.
    """
    _check_leaf(name, leaf, old)
    if not isinstance(leaf, Tensor):
        return leaf
    if rank is not None:
        if leaf.ndim == 0 or rank >= len(leaf):
            raise CheckpointError(
                f"the checkpoint holds the states of {len(leaf)} ranks, but this is rank {rank}; resume with as many"
            )
        leaf = leaf[rank]
    if isinstance(old, Tensor) and leaf.shape != old.shape:
        raise CheckpointError(
            f"the checkpoint's {name} has the shape {list(leaf.shape)}, but the problem's is {list(old.shape)}; resume "
            "with the problem of the run"
        )
    if old is None and leaf.numel() not in sizes:
        raise _damage(name, leaf)
    return leaf


def _check_leaf(name: str, leaf: Any, old: Any) -> None:
    """Raise unless a value can stand for one of a fresh state: tensors of numbers for tensors, whole numbers for such."""
    if isinstance(leaf, Tensor):
        fits = isinstance(old, Tensor) or old is None
        kind = old.is_floating_point() if isinstance(old, Tensor) else leaf.is_floating_point()
        fits = fits and leaf.is_floating_point() == kind and bool(leaf.isfinite().all())
    elif isinstance(old, dict):  # oracle calls
        fits = isinstance(leaf, dict) and leaf.keys() == old.keys() and all(_is_count(value) for value in leaf.values())
    elif isinstance(old, int):
        fits = isinstance(leaf, int) and (name == "seed" or _is_count(leaf))
    else:
        fits = leaf is None or (not isinstance(old, Tensor) and type(leaf) is type(old))
    if not fits:
        raise _damage(name, leaf)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _damage(name: str, value: Any) -> CheckpointError:
    """Make the error of a value that no run writes."""
    return CheckpointError(
        f"the checkpoint's {name} is {short(value)}, which no run writes; use another checkpoint of the run"
    )


def move_state(state: State, device: torch.device) -> State:
    """Return the state with all tensors on a device."""
    leaves, spec = tree_flatten(state)
    return dict(tree_unflatten([leaf.to(device) if isinstance(leaf, Tensor) else leaf for leaf in leaves], spec))


def average_state(state: State, problem: BilevelProblem, mean: Callable[[Tensor], Tensor]) -> State:
    """Return the state whose tensors are the means over ranks.

    What belongs to a rank's own problems stays as it is: of a batch of problems, what has their axis, and ``y``.

    Args:
        state: of this rank.
        problem: of this rank.
        mean: of a tensor over ranks.
    """

    def average(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        is_own = problem.batched is not None and value.ndim > 1 and len(value) == problem.batched
        return value if is_own else mean(value)

    averaged = dict(state)
    for name, value in state.items():
        if name in OF_LAST_STEP or name == "x":
            continue
        if name != "y":
            averaged[name] = average(value)
        elif problem.batched is None:
            averaged[name] = tree_map(average, value)
    return averaged


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()
