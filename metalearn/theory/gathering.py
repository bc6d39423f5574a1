"""Some tasks of an episode, a list, a loader or a data module."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import move_data_to_device
from torch.utils.data import DataLoader

from metalearn.episode import Batch, Episode, SemiSupervisedEpisode
from metalearn.errors import ConfigError, DataError
from metalearn.modules.episodic.batches import as_episode

__all__ = ["gather_tasks", "take_tasks"]


def gather_tasks(module: L.LightningModule, episodes: Any, tasks: int) -> list[Any]:
    """The first tasks, in batches on the module's device; no random generator is moved on.

    Args:
        module: says the device.
        episodes: see :func:`~metalearn.theory.measure_constants`.
        tasks: how many at most.

    Raises:
        ConfigError: episodes are none of these.
        DataError: there is no task.
    """
    batches: list[Any] = []
    left = tasks
    with torch.random.fork_rng([]):
        for batch in _list_batches(episodes):
            part, count = take_tasks(batch, left)
            batches.append(move_data_to_device(part, module.device))
            left -= count
            if left <= 0:
                break
    if not batches:
        raise DataError(
            "episodes hold no task, but at least one is measured; give a loader or a list that is not empty"
        )
    return batches


def take_tasks(batch: Any, tasks: int) -> tuple[Any, int]:
    """The first tasks of a batch, and how many they are."""
    if _is_list(batch):
        return batch[:tasks], min(tasks, len(batch))
    episode = as_episode(batch)
    parts = (Batch(part.x[:tasks], part.y[:tasks]) for part in episode)
    return Episode(*parts), min(tasks, len(episode.support.x))


def _list_batches(episodes: Any) -> Iterator[Any]:
    if isinstance(episodes, L.LightningDataModule):
        episodes.prepare_data()
        episodes.setup("fit")
        episodes = episodes.train_dataloader()
    if isinstance(episodes, DataLoader) or episodes == []:
        yield from episodes
    elif _is_list(episodes) or isinstance(episodes, (Episode, SemiSupervisedEpisode, tuple)):
        yield episodes
    elif isinstance(episodes, Iterable) and not isinstance(episodes, (str, bytes, dict, torch.Tensor)):
        yield from episodes
    else:
        raise ConfigError(
            f"episodes is a {type(episodes).__name__}, but tasks come from an Episode, a list of them, a loader or a data "
            "module; use for example data.train_dataloader()"
        )


def _is_list(batch: Any) -> bool:
    return isinstance(batch, list) and all(isinstance(task, (Episode, SemiSupervisedEpisode)) for task in batch)
