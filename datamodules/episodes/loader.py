"""Loading episodes: exact shares for every rank, no duplicates, and a position that survives a restart."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from metalearn.episode import Episode
from metalearn.errors import CheckpointError

__all__ = ["EpisodeDataset", "EpisodeLoader", "EpisodeSampler", "as_it_is"]


class EpisodeDataset(Dataset[Episode]):
    """Map-style: an index is the number of an episode; a list of indices is drawn as one batch.

    Args:
        draw: makes the batch of episodes with the given numbers.
        size: how many episodes there are.
    """

    def __init__(self, draw: Callable[[list[int]], Episode], size: int) -> None:
        self._draw, self._size = draw, size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> Episode:
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> Episode:
        if min(indices) < 0:
            raise IndexError(f"episode number is {min(indices)}, but episodes are numbered from 0; use 0 or more")
        return self._draw(indices)


class EpisodeSampler(DistributedSampler[int]):
    """The numbers of the episodes of one rank: every ``world``-th one, without padding.

    It is a ``DistributedSampler`` so that Lightning leaves it in place.

    Args:
        tasks: episodes an epoch, over all ranks.
        rank: this process.
        world: the number of processes.
        advances: in training, epoch ``e`` yields the episodes from ``e * tasks`` on, and each rank the same number of
            them; otherwise every epoch yields the same ones, each exactly once over all ranks.
    """

    def __init__(self, tasks: int, rank: int, world: int, advances: bool) -> None:
        super().__init__(range(tasks), num_replicas=world, rank=rank, shuffle=False)  # type: ignore[arg-type]
        self.tasks, self.advances = tasks, advances
        self.first = 0

    def __iter__(self) -> Iterator[int]:
        begin = self.epoch * self.tasks if self.advances else 0
        first, last = (begin + position * self.num_replicas + self.rank for position in (self.first, len(self)))
        self.first = 0
        return iter(range(first, last, self.num_replicas))

    def __len__(self) -> int:
        if self.advances:
            return self.tasks // self.num_replicas
        return len(range(self.rank, self.tasks, self.num_replicas))


class EpisodeLoader(DataLoader[Episode]):
    """A DataLoader whose position is part of a checkpoint: a resumed run goes on with the next episode.

    A training loader that was iterated to its end goes on with the next epoch, so that a plain loop over it sees new tasks;
    a Trainer sets the epoch itself. One that was left half-way begins its epoch again.

    Its arguments are a DataLoader's own, since Lightning builds loaders anew for prediction: the dataset an
    :class:`EpisodeDataset`, the sampler an :class:`EpisodeSampler`, and ``collate_fn`` :func:`as_it_is`.
    """

    _done = 0
    _resumed = 0

    def __iter__(self) -> Iterator[Episode]:  # type: ignore[override]
        # Lightning overfits by a sampler of its own, which begins anew
        self._done, self._resumed = self._resumed if isinstance(self.sampler, EpisodeSampler) else 0, 0
        if isinstance(self.sampler, EpisodeSampler):
            self.sampler.first = self._done * (self.batch_size or 1)
        for batch in super().__iter__():
            self._done += 1
            yield batch
        if self._advances:
            self._done = 0
            self.sampler.set_epoch(self.sampler.epoch + 1)  # type: ignore[attr-defined]

    @property
    def _advances(self) -> bool:
        return isinstance(self.sampler, EpisodeSampler) and self.sampler.advances

    def state_dict(self) -> dict[str, int]:
        """The number of batches of this epoch that were handed out, and the epoch."""
        return {"batches": self._done, "epoch": getattr(self.sampler, "epoch", 0)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on after the batches that were handed out; after a whole epoch, with the next one.

        Raises:
            CheckpointError: the state is of another loader.
        """
        for name in ("batches", "epoch"):
            value = state.get(name)
            if type(value) is not int or value < 0:
                raise CheckpointError(
                    f"the checkpoint's combined_loader says {name}={value!r:.40}, but episodes go on after so many batches of an "
                    "epoch; go on from the last.ckpt of a run of this configuration"
                )
        finished = state["batches"] >= len(self)
        self._done = self._resumed = 0 if finished else state["batches"]
        if isinstance(self.sampler, EpisodeSampler):
            self.sampler.set_epoch(state["epoch"] + (finished and self._advances))


def as_it_is(batch: Any) -> Episode:
    """The batch: it was drawn whole."""
    return batch
