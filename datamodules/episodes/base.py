"""What all episodic data modules share: arguments, splits, loaders, and episodes as pure functions of their number."""

from __future__ import annotations

import logging
from typing import Any

import lightning as L
import torch

from metalearn.datamodules.episodes.arguments import LoaderArguments, Unpack, get_texts, spell_out
from metalearn.datamodules.episodes.augmentation import HOOKS
from metalearn.datamodules.episodes.loader import EpisodeDataset, EpisodeLoader, EpisodeSampler, as_it_is
from metalearn.datamodules.sources.images import ImageSpec
from metalearn.datamodules.sources.listing import SPLITS
from metalearn.docstrings import complete_docstring
from metalearn.episode import Batch, Episode
from metalearn.errors import ConfigError

__all__ = ["EpisodicDataModule"]

log = logging.getLogger(__name__)


class EpisodicDataModule(L.LightningDataModule):
    """Episodes for training, validation and test. Works under a Trainer, on any number of ranks, and without one.

    Subclasses implement :meth:`draw`, and check their arguments in ``__init__`` before anything is written.

    Attributes:
        image_spec: how images are read, or ``None`` where the inputs are no images.

    Example:
        >>> import torch
        >>> from metalearn import Batch, Episode
        >>> from metalearn.datamodules import EpisodicDataModule
        >>> class Lines(EpisodicDataModule):
        ...     def draw(self, seed, split, indices):
        ...         slope = torch.tensor(indices).float().reshape(-1, 1, 1)
        ...         x = torch.linspace(-1, 1, 10).reshape(1, 10, 1).expand(len(indices), -1, -1)
        ...         return Episode(Batch(x[:, :5], slope * x[:, :5]), Batch(x[:, 5:], slope * x[:, 5:]))
        >>> Lines().episode(seed=0, split="val", index=2).query.y[-1]
        tensor([2.])
    """

    image_spec: ImageSpec | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        complete_docstring(cls, get_texts(cls))

    @spell_out(LoaderArguments)
    def __init__(self, **arguments: Unpack[LoaderArguments]) -> None:
        super().__init__()
        tasks_per_batch, train_tasks = arguments["tasks_per_batch"], arguments["train_tasks"]
        if train_tasks < tasks_per_batch:
            raise ConfigError(
                f"train_tasks is {train_tasks}, but an epoch must hold at least one batch of {tasks_per_batch} tasks; raise "
                "train_tasks or lower tasks_per_batch"
            )
        self.tasks_per_batch = tasks_per_batch
        self.tasks = {"train": train_tasks, "val": arguments["val_tasks"], "test": arguments["test_tasks"]}
        self.seed, self.train_seed = arguments["seed"], arguments["train_seed"]
        self.num_workers = arguments["num_workers"]

    def draw(self, seed: int, split: str, indices: list[int]) -> Any:
        """The episodes with these numbers, as a pure function of the arguments.

        They are one stacked :class:`Episode` where they are alike, else a list of them, each with a task axis of 1.
        """
        raise NotImplementedError(f"{type(self).__name__} must draw episodes")

    def ready(self) -> None:
        """Open the data, preparing it first where no Trainer has."""

    def episode(self, seed: int, split: str, index: int) -> Any:
        """One task, an :class:`Episode` without the task axis: a pure function of (seed, split, index).

        Args:
            seed: any whole number; the loaders use the module's own, for training ``train_seed`` where there is one.
            split: ``"train"``, ``"val"`` or ``"test"``.
            index: the number of the episode, from 0.
        """
        if split not in SPLITS:
            raise ConfigError(f"split is {split!r}, but it must be one of {', '.join(SPLITS)}; use 'test'")
        if index < 0:
            raise ConfigError(f"index is {index}, but episodes are numbered from 0; use 0 or more")
        self.ready()
        if not self.has_classes(split):
            raise ConfigError(f"split is {split!r}, but splits leaves it without classes; use another, or give it some")
        drawn = self.draw(seed, split, [index])
        task = drawn[0] if isinstance(drawn, list) else drawn
        return type(task)(*(Batch(role.x[0], role.y[0]) for role in task))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "trainer": None}  # as Lightning's modules do

    def train_dataloader(self) -> Any:
        return self._loader("train")

    def val_dataloader(self) -> Any:
        return self._loader("val")

    def test_dataloader(self) -> Any:
        return self._loader("test")

    def predict_dataloader(self) -> Any:
        return self._loader("test")

    def has_classes(self, split: str) -> bool:
        """Whether there is anything in a split to draw tasks from."""
        return True

    def _loader(self, split: str) -> Any:
        self.ready()
        if not self.has_classes(split):
            if split != "val" or self.trainer is None or self.trainer.state.fn != "fit":
                raise ConfigError(
                    f"splits leaves {split} without classes, but its tasks are asked for; name classes for {split}"
                )
            log.warning("splits leaves val without classes, so the run goes without validation")
            return []
        rank, world = (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
        trains = split == "train"
        if trains and self.tasks["train"] < self.tasks_per_batch * world:
            raise ConfigError(
                f"train_tasks is {self.tasks['train']}, but an epoch on {world} ranks must hold at least "
                f"{self.tasks_per_batch * world} tasks; raise train_tasks or lower tasks_per_batch"
            )
        if self.tasks[split] < world:
            raise ConfigError(
                f"{split}_tasks is {self.tasks[split]}, but there are {world} ranks and each needs a task; raise {split}_tasks"
            )
        sampler = EpisodeSampler(self.tasks[split], rank, world, advances=trains)
        dataset = EpisodeDataset(_Draw(self, split), self.tasks[split])
        return EpisodeLoader(
            dataset,
            sampler=sampler,
            collate_fn=as_it_is,
            batch_size=self.tasks_per_batch,
            drop_last=trains,
            num_workers=self.num_workers,
            # a batch is drawn in milliseconds, so one ahead is enough, and memory does not grow with the workers
            prefetch_factor=1 if self.num_workers > 1 else None,
            persistent_workers=self.num_workers > 0,
            generator=torch.Generator(),  # else every new iterator would draw from the global RNG
            pin_memory=torch.cuda.is_available(),
        )


class _Draw:
    """Draws from a data module; pickles without its hooks, for workers that are spawned."""

    def __init__(self, data: EpisodicDataModule, split: str) -> None:
        self.data, self.split = data, split

    def __call__(self, indices: list[int]) -> Episode:
        data = self.data
        seed = data.train_seed if self.split == "train" and data.train_seed is not None else data.seed
        return data.draw(seed, self.split, indices)

    def __getstate__(self) -> dict[str, object]:
        clone = object.__new__(type(self.data))
        left = {"trainer", *HOOKS}  # hooks are bound to the data module that has the Trainer
        clone.__dict__.update({name: value for name, value in self.data.__dict__.items() if name not in left})
        return {"data": clone, "split": self.split}
