"""An algorithm's state outside of a run: made the same on all ranks, and kept in checkpoints as plain tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from metalearn.bilevel.algorithms.base import State
from metalearn.bilevel.problem import BilevelProblem
from metalearn.carried.classes import short
from metalearn.errors import CheckpointError

__all__ = ["average_state", "move_state", "pack_state", "unpack_state"]

TREES = ("x", "y")
TOLD = ("loss", "norm", "certificate", "inner_residual", "dual_residual", "growth")
"""What is said of the last step, and not carried into the next one."""


def pack_state(state: State, gather: Callable[[Tensor], Tensor] | None = None) -> dict[str, Any]:
    """The state without ``x``, which the module's parameters hold, and without what is said of the last step.

    Args:
        state: an algorithm's.
        gather: of a tensor those of all ranks, ``[ranks, ...]``, where each rank has its own.
    """
    packed: dict[str, Any] = {}
    for name, value in state.items():
        if name == "x" or name in TOLD:
            continue
        leaves = tree_flatten(value)[0] if name in TREES else [value]
        kept = [
            _copy(leaf if gather is None else gather(leaf)) if isinstance(leaf, Tensor) else leaf for leaf in leaves
        ]
        packed[name] = kept if name in TREES else kept[0]
    return packed


def unpack_state(packed: Any, fresh: State, rank: int | None = None) -> State:
    """A state that goes on from a packed one.

    Args:
        packed: from :func:`pack_state`.
        fresh: the algorithm's initial state at the restored ``x``, which gives ``x`` and the structure of ``y``.
        rank: whose share to take, where each rank has its own.

    Raises:
        CheckpointError: it belongs to another algorithm, problem or number of ranks.
    """
    expected = {name for name in fresh if name not in TOLD and name != "x"}
    if not isinstance(packed, dict):
        raise _wrong("state", packed)
    if packed.keys() != expected:
        odd = ", ".join(sorted(map(str, packed.keys() ^ expected)))
        raise CheckpointError(
            f"the checkpoint's state is of another algorithm: {odd} is in one of them alone; resume with the algorithm of the run"
        )
    state = dict(fresh)
    # what is absent at first, such as a dual variable, is as large as one of the problem's variables
    sizes = {sum(leaf.numel() for leaf in tree_flatten(fresh[name])[0]) for name in TREES}
    for name, value in packed.items():
        leaves, spec = tree_flatten(fresh[name]) if name in TREES else ([fresh[name]], None)
        given = value if name in TREES else [value]
        if not isinstance(given, list) or len(given) != len(leaves):
            raise _wrong(name, value)
        found = []
        for leaf, old in zip(given, leaves, strict=True):
            _check_leaf(name, leaf, old)
            if isinstance(leaf, Tensor) and rank is not None:
                if leaf.ndim == 0 or rank >= len(leaf):
                    raise CheckpointError(
                        f"the checkpoint holds the states of {len(leaf)} ranks, but this is rank {rank}; resume with as many"
                    )
                leaf = leaf[rank]
            if isinstance(leaf, Tensor) and isinstance(old, Tensor) and leaf.shape != old.shape:
                raise CheckpointError(
                    f"the checkpoint's {name} has the shape {list(leaf.shape)}, but the problem's is {list(old.shape)}; resume "
                    "with the problem of the run"
                )
            if isinstance(leaf, Tensor) and old is None and leaf.numel() not in sizes:
                raise _wrong(name, leaf)
            found.append(leaf)
        state[name] = tree_unflatten(found, spec) if spec is not None else found[0]
    return state


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
        raise _wrong(name, leaf)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _wrong(name: str, value: Any) -> CheckpointError:
    return CheckpointError(
        f"the checkpoint's {name} is {short(value)}, which no run writes; use another checkpoint of the run"
    )


def move_state(state: State, device: torch.device) -> State:
    """The state with all tensors on a device."""
    leaves, spec = tree_flatten(state)
    return dict(tree_unflatten([leaf.to(device) if isinstance(leaf, Tensor) else leaf for leaf in leaves], spec))


def average_state(state: State, problem: BilevelProblem, mean: Callable[[Tensor], Tensor]) -> State:
    """The state whose tensors are the means over ranks, but for those that belong to a rank's own problems: of a batch of
    problems, what has their axis."""

    def shared(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        own = problem.batched is not None and value.ndim > 1 and len(value) == problem.batched
        return value if own else mean(value)

    changed = dict(state)
    for name, value in state.items():
        if name in TOLD or name == "x":
            continue
        if name == "y":
            leaves, spec = tree_flatten(value)
            ours = problem.batched is not None
            changed[name] = value if ours else tree_unflatten([shared(leaf) for leaf in leaves], spec)
        else:
            changed[name] = shared(value)
    return changed


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()
