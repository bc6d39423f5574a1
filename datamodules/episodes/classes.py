"""Episodes of classes: which examples make up a task, for every kind of data whose examples have a class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metalearn.checks import check_range
from metalearn.datamodules.episodes.arguments import ClassArguments, LoaderArguments, Unpack, select, spell_out
from metalearn.datamodules.episodes.base import EpisodicDataModule
from metalearn.datamodules.episodes.groups import find_groups
from metalearn.datamodules.episodes.options import EpisodeOptions
from metalearn.datamodules.episodes.pool import Pool
from metalearn.datamodules.episodes.room import Room
from metalearn.datamodules.episodes.sampling import Recipe, TaskRows, draw_episodes, draw_order, draw_task
from metalearn.datamodules.episodes.splits import ClassSplit, find_empty_splits
from metalearn.datamodules.episodes.task_table import name_classes, read_tasks
from metalearn.datamodules.sources.listing import SPLITS
from metalearn.episode import Batch, Episode, SemiSupervisedEpisode
from metalearn.errors import ConfigError

__all__ = ["ClassEpisodes"]

TURNS = 4


class ClassEpisodes(EpisodicDataModule):
    """Episodes of classes. Subclasses implement :meth:`open_pool` and :meth:`take`.

    Where ``ways``, ``shots`` or ``queries`` is a range, tasks differ in shape, and a batch is a list of its ``B`` tasks, each
    an episode with a task axis of 1.

    Example:
        >>> import numpy as np
        >>> from metalearn.datamodules import ArrayEpisodes, ClassEpisodes
        >>> x, y = np.random.rand(400, 8), np.repeat(np.arange(20), 20)
        >>> data = ArrayEpisodes(x, y, ways=[2, 3], queries=5)
        >>> isinstance(data, ClassEpisodes), data.num_classes("train")
        (True, 13)
    """

    splits_by: ClassSplit | None = None
    """How classes are split, where an argument of the subclass says it."""

    @spell_out(ClassArguments, last=("num_workers", "options", "train_seed"))
    def __init__(self, **arguments: Unpack[ClassArguments]) -> None:
        super().__init__(**select(arguments, LoaderArguments))
        self.ways, self.shots, self.queries = arguments["ways"], arguments["shots"], arguments["queries"]
        self.options = arguments["options"] or EpisodeOptions()
        self.recipe = Recipe(
            check_range("ways", self.ways, 2),
            check_range("shots", self.shots, 1),
            check_range("queries", self.queries, 1),
            self.options.balanced,
            self.options.unlabeled,
            self.options.distractors,
            self.options.aligned,
        )
        self._pool: Pool | None = None
        self._splits: dict[str, np.ndarray] = {}
        self._groups: dict[str, list[np.ndarray]] = {}
        self._listed: list[TaskRows] | None = None
        self._opens_anyhow = False

    @property
    def meant_empty(self) -> set[str]:
        """The splits that are meant to have no classes."""
        return set() if self.splits_by is None else find_empty_splits(self.splits_by)

    @property
    def splits_are_chosen(self) -> bool:
        """Whether the argument ``splits`` says which classes are in which split."""
        return self.splits_by is not None

    def open_anyhow(self) -> None:
        """Open the data whatever tasks are asked for, so that it can be looked at."""
        self._opens_anyhow = True
        self.ready()

    def has_classes(self, split: str) -> bool:
        self.ready()
        return len(self._splits[split]) > 0 or (split == "test" and self._listed is not None)

    def open_pool(self) -> tuple[Pool, dict[str, np.ndarray]]:
        """Open the data: its classes, and for each split the numbers of its own."""
        raise NotImplementedError(f"{type(self).__name__} must open its data")

    def take(self, rows: np.ndarray, turns: np.ndarray | None) -> Tensor:
        """The inputs ``[..., *]`` of the examples with these numbers, turned by quarters where ``turns`` says so."""
        raise NotImplementedError(f"{type(self).__name__} must take examples")

    def example_names(self, number: int) -> list[str] | None:
        """The names of the examples of a class, for tables of tasks; ``None`` where they are numbered."""
        return None

    def identify_examples(self) -> str | None:
        """What tells these examples from others without a look at all of them; ``None`` where nothing does."""

    def setup(self, stage: str | None = None) -> None:
        """Open the data, and read the table of test tasks if there is one."""
        if self._pool is not None:
            return
        pool, splits = self.open_pool()
        self.check(pool, splits)
        if stage == "fit" and not len(splits["train"]):
            raise ConfigError("splits leaves train without classes, but a fit needs some; name classes for train")
        if self.options.within_groups and not self._opens_anyhow:
            self._groups = {
                split: self._find_usable_groups(pool, split, classes)
                for split, classes in splits.items()
                if len(classes)
            }
        if self.options.test_tasks_file is not None:
            self._listed = read_tasks(self.options.test_tasks_file, pool, splits, self.example_names)
            self.tasks["test"] = len(self._listed)
        self._splits, self._pool = splits, pool

    def ready(self) -> None:
        if self._pool is None:
            self.setup()

    def num_classes(self, split: str) -> int:
        """How many classes a split has, those of turned images included."""
        self.ready()
        return len(self._splits[split]) * (TURNS if self._turns(split) else 1)

    def class_names(self, split: str) -> list[str]:
        """The names of a split's classes."""
        self.ready()
        assert self._pool is not None
        names = [self._pool.names[number] for number in self._splits[split]]
        return [f"{name}@{90 * turn}" for name in names for turn in range(TURNS)] if self._turns(split) else names

    @property
    def pool(self) -> Pool:
        """The classes and how many examples they have."""
        self.ready()
        assert self._pool is not None
        return self._pool

    @property
    def splits(self) -> dict[str, np.ndarray]:
        """For each split, the numbers of its classes in the :attr:`pool`."""
        self.ready()
        return self._splits

    def draw(self, seed: int, split: str, indices: list[int]) -> Any:
        listed = self._listed if split == "test" else None
        if listed is None and not self.recipe.varies and not self.options.within_groups and not self.recipe.unlabeled:
            return self._draw_alike(seed, split, np.asarray(indices, np.int64))
        turned = self._turns(split) and listed is None
        tasks = []
        for index in indices:
            rows, turns = (self._look_up_task(index), None) if listed else self._draw_one(seed, split, index, turned)
            tasks.append(self._build(rows, turns))
        if self.recipe.varies or len({tuple(role.x.shape for role in task) for task in tasks}) > 1:
            return tasks
        return type(tasks[0])(*(Batch(*map(torch.cat, zip(*roles, strict=True))) for roles in zip(*tasks, strict=True)))

    def task_rows(self, seed: int, split: str, index: int) -> TaskRows:
        """The numbers of the examples of a task in the :attr:`pool`, and their labels."""
        self.ready()
        if split == "test" and self._listed is not None:
            return self._look_up_task(index)
        return self._draw_one(seed, split, index, False)[0]

    def task_classes(self, split: str, indices: Sequence[int]) -> list[list[str]] | None:
        """The names of the classes of test or validation tasks with these numbers, for each task in the order of its labels.

        ``None`` where a subclass has loaders of its own, whose tasks may have other numbers.
        """
        hook = f"{split}_dataloader"
        own = getattr(type(self), hook) is not getattr(EpisodicDataModule, hook)
        return None if own else [name_classes(self, split, index) for index in indices]

    def _look_up_task(self, index: int) -> TaskRows:
        assert self._listed is not None
        if index >= len(self._listed):
            raise ConfigError(
                f"test task {index} is asked for, but {self.options.test_tasks_file} lists {len(self._listed)} tasks, numbered "
                f"from 0; ask for at most {len(self._listed)}"
            )
        return self._listed[index]

    def gather_rows(self, seed: int, split: str, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """The numbers ``[B, N, K + Q]`` of the examples of tasks of one shape, and the turns ``[B, N]`` of their classes."""
        return self._pick_rows(seed, split, indices)[:2]

    def _pick_rows(
        self, seed: int, split: str, indices: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
        """As :meth:`gather_rows`, with the numbers ``[B, N]`` of the classes in the split."""
        pool, classes = self.pool, self._splits[split]
        counts = pool.counts[classes]
        turned = self._turns(split)
        if turned:
            counts = np.repeat(counts, TURNS)
        ways, shots, queries = self.recipe.ways[0], self.recipe.shots[0], self.recipe.queries[0]
        picked, images = draw_episodes(seed, split, indices, counts, ways, shots + queries, self.recipe.aligned)
        turns = picked % TURNS if turned else None
        base = picked // TURNS if turned else picked
        return pool.offsets[classes[base]][..., None] + images, turns, picked

    def _draw_alike(self, seed: int, split: str, indices: np.ndarray) -> Episode:
        """Tasks of one shape: one draw and one gather for all."""
        rows, turns, picked = self._pick_rows(seed, split, indices)
        ways, shots, queries = self.recipe.ways[0], self.recipe.shots[0], self.recipe.queries[0]
        by_class = torch.from_numpy(np.asarray(picked, np.int64))
        labels = by_class if self._labels_classes(split) else torch.arange(ways).expand_as(by_class)
        sets = []
        for part, count in ((rows[:, :, :shots], shots), (rows[:, :, shots:], queries)):
            x = self.take(part, None if turns is None else np.repeat(turns[..., None], count, -1))
            y = labels.repeat_interleave(count, 1)
            sets.append(Batch(x.view(len(indices), ways * count, *x.shape[3:]), y))
        return Episode(*sets)

    def _draw_one(self, seed: int, split: str, index: int, turned: bool) -> tuple[TaskRows, list[np.ndarray] | None]:
        """A task of any shape: its rows, and the turns of each part's images."""
        pool, classes = self.pool, self._splits[split]
        counts = pool.counts[classes]
        groups: Sequence[np.ndarray] | None = self._groups.get(split)
        if turned:
            counts = np.repeat(counts, TURNS)
        drawn = draw_task(seed, split, index, counts, self.recipe, groups)
        base = drawn.classes // TURNS if turned else drawn.classes
        rows = pool.offsets[classes[base]][:, None] + drawn.examples
        turns = np.repeat((drawn.classes % TURNS)[:, None], rows.shape[1], 1)
        ways, most = len(drawn.shots), self.recipe.shots[1]
        support = np.arange(most) < drawn.shots[:, None]
        query = slice(most, most + drawn.queries)
        numbers = drawn.classes if self._labels_classes(split) else np.arange(len(rows))
        labels = np.where(np.arange(len(rows)) < ways, numbers, -1)
        last = rows[:, rows.shape[1] - self.recipe.unlabeled :] if self.recipe.unlabeled else rows[:, :0]
        order = draw_order(seed, split, index, last.size)
        task = TaskRows(
            rows[:ways, :most][support],
            np.repeat(labels[:ways], drawn.shots),
            rows[:ways, query].ravel(),
            np.repeat(labels[:ways], drawn.queries),
            last.ravel()[order],
            np.repeat(labels, last.shape[1])[order],
        )
        if not turned:
            return task, None
        parts = [turns[:ways, :most][support], turns[:ways, query].ravel()]
        return task, [*parts, turns[:, : last.shape[1]].ravel()[order]]

    def _build(self, rows: TaskRows, turns: list[np.ndarray] | None) -> Episode | SemiSupervisedEpisode:
        roles = []
        for part, (numbers, labels) in enumerate(zip(rows[::2], rows[1::2], strict=True)):
            x = self.take(numbers, None if turns is None else turns[part])
            roles.append(Batch(x[None], torch.from_numpy(np.asarray(labels, np.int64))[None]))
        return SemiSupervisedEpisode(*roles) if self.recipe.unlabeled else Episode(*roles[:2])

    def _labels_classes(self, split: str) -> bool:
        return self.options.class_labels and split == "train"

    def _turns(self, split: str) -> bool:
        return self.options.rotations and split == "train"

    def _find_usable_groups(self, pool: Pool, split: str, classes: np.ndarray) -> list[np.ndarray]:
        names = [pool.groups[number] for number in classes]
        if set(names) == {""}:
            raise ConfigError(
                f"within_groups is true, but {type(self).__name__} has no groups of classes; leave it out"
            )
        turns = self.find_turns(classes)
        if self._turns(split):
            names, turns = list(np.repeat(names, TURNS)), np.tile(np.arange(TURNS), len(classes))
        usable = find_groups(names, turns, self.recipe.ways[0] + self.recipe.distractors)
        if not usable:
            raise ConfigError(
                f"ways is {self.ways} within groups, but the largest group of the {split} split has "
                f"{max(map(names.count, set(names)))} classes; use fewer ways, or leave out within_groups"
            )
        return usable

    def find_turns(self, classes: np.ndarray) -> np.ndarray:
        """By how many quarters these classes of the pool are turned, where turned images are classes of the data set."""
        return np.zeros(len(classes), np.int64)

    def check(self, pool: Pool, splits: dict[str, np.ndarray]) -> None:
        """Raise where there are too few classes or examples for the tasks that were asked for."""
        if not self._opens_anyhow:
            self._room(pool, splits).check(self.ways, self.recipe)

    @property
    def room(self) -> Room:
        """What tasks there are classes and examples for."""
        return self._room(self.pool, self.splits)

    def _room(self, pool: Pool, splits: dict[str, np.ndarray]) -> Room:
        turns = {split: TURNS if self._turns(split) else 1 for split in SPLITS}
        return Room.of(
            type(self).__name__, pool.names, pool.counts, splits, turns, self.meant_empty, self.splits_are_chosen
        )
