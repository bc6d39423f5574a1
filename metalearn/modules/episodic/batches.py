"""What a batch may be: one episode of tasks that are alike, or a list of tasks of any shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metalearn.episode import Batch, Episode, SemiSupervisedEpisode
from metalearn.errors import ShapeError

__all__ = ["Group", "as_episode", "as_groups", "as_tasks"]


CountWays = Callable[[Episode], int | None]
"""How many of the network's outputs a task uses; ``None`` for all."""


class Group(NamedTuple):
    """Tasks that are alike.

    Attributes:
        episode: the tasks, with their axis.
        ways: how many of the network's outputs they use; ``None`` for all.
    """

    episode: Episode
    ways: int | None


def as_episode(batch: Any) -> Episode:
    """Accept plain nested pairs ``((xs, ys), (xq, yq))`` for an Episode, and leave unlabeled examples out.

    Raises:
        ShapeError: the batch is something else.
    """
    if isinstance(batch, SemiSupervisedEpisode):
        batch = batch[:2]
    if isinstance(batch, Sequence) and len(batch) == 2 and all(isinstance(p, Sequence) and len(p) == 2 for p in batch):
        episode = Episode(Batch(*batch[0]), Batch(*batch[1]))
        for role, part in zip(("support", "query"), episode, strict=True):
            for name, value in zip(("x", "y"), part, strict=True):
                if not isinstance(value, Tensor):
                    raise ShapeError(
                        f"{role}.{name} is a {type(value).__name__}, but it must be a tensor; {_convert(value)}"
                    )
        return episode
    raise ShapeError(
        f"the batch is a {type(batch).__name__}, but a meta-learning step needs an Episode(support=Batch(x, y), "
        "query=Batch(x, y)), or a list of them; let the dataloader yield metalearn.Episode"
    )


def _convert(value: Any) -> str:
    if isinstance(value, Mapping):
        return "join its fields into one tensor, and let the network take them apart"
    if isinstance(value, (list, tuple)) and any(isinstance(each, str) for each in value):
        return "number the strings from 0, and use torch.as_tensor"
    if isinstance(value, (list, tuple)) and any(isinstance(each, Tensor) for each in value):
        return (
            "join its tensors into one of floats along the last axis, and let the network or the loss take them apart"
        )
    return "use torch.as_tensor"


def as_tasks(batch: Any, count_ways: CountWays) -> list[Group]:
    """A batch as one group that uses all outputs, or, where it is a list of tasks, as one group for each, in their order.

    A task of a list uses as many outputs as its support set has classes.

    Raises:
        ShapeError: the batch is neither.
    """
    if not _is_list(batch):
        return [Group(as_episode(batch), None)]
    episodes = [as_episode(task) for task in batch]
    return [Group(episode, count_ways(episode)) for episode in episodes]


def as_groups(batch: Any, count_ways: CountWays) -> list[Group]:
    """As :func:`as_tasks`, with tasks of the same shape and ways in one group: for what does not depend on their order."""
    alike: dict[Any, list[Episode]] = {}
    for episode, ways in as_tasks(batch, count_ways):
        key = (ways, *((tensor.shape[1:], tensor.dtype) for role in episode for tensor in role))
        alike.setdefault(key, []).append(episode)
    return [Group(_stack(episodes), key[0]) for key, episodes in alike.items()]


def _is_list(batch: Any) -> bool:
    return (
        isinstance(batch, list)
        and bool(batch)
        and all(isinstance(task, Episode | SemiSupervisedEpisode) for task in batch)
    )


def _stack(episodes: list[Episode]) -> Episode:
    if len(episodes) == 1:
        return episodes[0]
    return Episode(
        *(Batch(*(torch.cat(parts) for parts in zip(*roles, strict=True))) for roles in zip(*episodes, strict=True))
    )
