"""Groups of classes, such as alphabets, that a task stays within."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

__all__ = ["find_groups"]


def find_groups(names: Sequence[str], turns: np.ndarray, needed: int) -> list[np.ndarray]:
    """The groups that are large enough for a task, in the order of their names.

    An alphabet that is turned by a quarter is a group of its own, so that all characters of a task are turned alike, as they are
    in test. Only one that is too small for that has its turns in one group.

    Args:
        names: the group of each class of a split.
        turns: ``[classes]`` by how many quarters each class is turned.
        needed: how many classes a task takes at least.

    Returns:
        for each group the positions of its classes.
    """
    members: dict[str, list[int]] = defaultdict(list)
    for position, name in enumerate(names):
        members[name].append(position)
    groups: list[np.ndarray] = []
    for _, listed in sorted(members.items()):
        positions = np.asarray(listed)
        alike = [positions[turns[positions] == turn] for turn in np.unique(turns[positions])]
        large = [group for group in alike if len(group) >= needed]
        groups.extend(large or ([positions] if len(positions) >= needed else []))
    return groups
