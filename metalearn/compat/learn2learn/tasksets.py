"""learn2learn's Tasksets in a LightningDataModule."""

from __future__ import annotations

from numbers import Number
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from metalearn.checks import check_whole
from metalearn.compat.learn2learn.generators import borrow_generators, seed_generators
from metalearn.compat.learn2learn.package import import_learn2learn
from metalearn.datamodules import EpisodicDataModule
from metalearn.datamodules.episodes.loader import EpisodeLoader
from metalearn.datamodules.episodes.randomness import draw_words
from metalearn.episode import Batch, Episode
from metalearn.errors import ConfigError, DataError

if TYPE_CHECKING:
    from learn2learn.data import Taskset

__all__ = ["TasksetDataModule"]


class TasksetDataModule(EpisodicDataModule):
    """Episodes out of learn2learn's Tasksets, each task a pure function of (seed, split, index).

    Of every class of a task, the first ``shots`` examples are support and the next ``queries`` are query. A Taskset with a
    finite ``num_tasks`` holds as many different tasks for each seed, and episode ``index`` is its task ``index % num_tasks``;
    random transforms of the dataset are drawn anew each time, as learn2learn does. The Taskset's own cache of tasks is
    neither read nor written: what it holds depends on who drew first.

    learn2learn draws from the global generators of ``random``, NumPy and torch. They are seeded for every task and put
    back after each batch. A dataset that draws from another generator (a GPU's, say) is outside of this.

    Args:
        train: tasks to train on, a ``learn2learn.data.Taskset`` whose items are ``(x, y)``: ``x`` ``[n, ...]`` and ``y``
            ``[n]`` in ``0..N-1`` with ``n = N*(K + Q)``, so ``NWays(n=ways)``, ``KShots(k=shots + queries)`` and
            ``RemapLabels`` are among its transforms.
        val: tasks to validate on; ``None`` for no validation.
        test: tasks to test on; ``None`` for no test.
        ways: how many classes a task has, ``N``.
        shots: how many support examples each class has, ``K``.
        queries: how many query examples each class has, ``Q``. Many of learn2learn's examples have as many as shots.
        tasks_per_batch: how many tasks a batch has, ``B``.
        train_tasks: how many training tasks make an epoch.
        val_tasks: how many validation tasks there are. They are the same every time.
        test_tasks: how many test tasks there are. They are the same every time.
        seed: the seed that tasks are drawn by.
        num_workers: how many processes draw tasks.

    Shape:
        ``x`` ``[B, n, ...]`` in the Taskset's own dtype, and ``y`` ``[B, n]`` int64, ordered by class.

    Raises:
        ConfigError: an argument is out of range, is no Taskset, or does not fit the Taskset; learn2learn is missing.
        DataError: a task is not what few-shot classification needs (when it is drawn).

    Example:
        >>> import learn2learn as l2l
        >>> import torch
        >>> from metalearn.compat.learn2learn import TasksetDataModule
        >>> t = l2l.data.transforms
        >>> rows = torch.utils.data.TensorDataset(torch.randn(100, 8), torch.arange(10).repeat(10))
        >>> dataset = l2l.data.MetaDataset(rows)
        >>> transforms = [t.NWays(dataset, n=5), t.KShots(dataset, k=4), t.LoadData(dataset), t.RemapLabels(dataset)]
        >>> data = TasksetDataModule(l2l.data.Taskset(dataset, transforms), ways=5, shots=1, queries=3)
        >>> data.episode(seed=0, split="train", index=0).query.x.shape
        torch.Size([15, 8])
    """

    def __init__(
        self,
        train: Taskset,
        val: Taskset | None = None,
        test: Taskset | None = None,
        ways: int = 5,
        shots: int = 1,
        queries: int = 15,
        tasks_per_batch: int = 16,
        train_tasks: int = 1600,
        val_tasks: int = 200,
        test_tasks: int = 600,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        check_whole("ways", ways, 2)
        check_whole("shots", shots, 1)
        check_whole("queries", queries, 1)
        super().__init__(tasks_per_batch, train_tasks, val_tasks, test_tasks, seed, num_workers)
        self.ways, self.shots, self.queries = ways, shots, queries
        self.tasksets: dict[str, Taskset] = {}
        kind = import_learn2learn().data.Taskset
        for split, taskset in (("train", train), ("val", val), ("test", test)):
            if taskset is not None or split == "train":
                _check_taskset(split, taskset, kind, self.tasks[split])
                self.tasksets[split] = taskset

    def val_dataloader(self) -> Any:
        """The loader of the validation tasks; an empty list, which a Trainer skips, where there are none."""
        return super().val_dataloader() if "val" in self.tasksets else []

    def test_dataloader(self) -> EpisodeLoader:
        self._find_taskset("test")
        return super().test_dataloader()

    def predict_dataloader(self) -> EpisodeLoader:
        self._find_taskset("test")
        return super().predict_dataloader()

    def draw(self, seed: int, split: str, indices: list[int]) -> Episode:
        taskset = self._find_taskset(split)
        with borrow_generators():
            x = torch.stack([self._draw_task(taskset, seed, split, index) for index in indices])
        labels = torch.arange(self.ways)
        sets = []
        for part, count in ((x[:, :, : self.shots], self.shots), (x[:, :, self.shots :], self.queries)):
            y = labels.repeat_interleave(count).repeat(len(indices), 1)
            sets.append(Batch(part.flatten(1, 2).contiguous(), y))
        return Episode(*sets)

    def _find_taskset(self, split: str) -> Taskset:
        if split not in self.tasksets:
            raise ConfigError(f"{split} is None, but {split} tasks are asked for; pass {split}=a learn2learn Taskset")
        return self.tasksets[split]

    def _draw_task(self, taskset: Taskset, seed: int, split: str, index: int) -> Tensor:
        """The examples ``[N, K + Q, ...]`` of one task. Leaves the global generators seeded."""
        number = index if taskset.num_tasks < 0 else index % taskset.num_tasks
        which, loading = draw_words(seed, split, np.array([number, index]), 6)
        what = f"{split} task {index}"
        seed_generators(which[:3])
        try:
            description = taskset.sample_task_description()
        except (TypeError, ValueError) as error:
            raise DataError(
                f"{what} cannot be drawn ({error}), but its transforms must find the classes and examples that they ask for; "
                "lower n and k, and write FusedNWaysKShots(filter_labels=...) for FilterLabels before NWays, which Python "
                "3.11 and later refuse"
            ) from error
        if not description:
            raise DataError(f"{what} has no examples, but it needs some; give the Taskset NWays, KShots and LoadData")
        if len({example.index for example in description}) < len(description):
            raise DataError(
                f"{what} holds an example twice, but no query example may be among the support; use KShots with "
                "replacement=False"
            )
        seed_generators(loading[3:])
        return self._sort_by_class(taskset.get_task(description), what)

    def _sort_by_class(self, task: Any, what: str) -> Tensor:
        if not isinstance(task, (list, tuple)) or len(task) != 2 or not all(isinstance(part, Tensor) for part in task):
            raise DataError(
                f"{what} is a {type(task).__name__}, but it must be a pair of tensors (x, y); add LoadData to the Taskset's "
                "transforms, and let its dataset yield (tensor, label)"
            )
        x, y = task[0].cpu(), task[1].cpu()  # the Trainer moves whole batches
        if y.ndim != 1 or len(x) != len(y) or y.is_floating_point() or y.is_complex():
            raise DataError(
                f"{what} has x of shape {list(x.shape)} and y of shape {list(y.shape)}, {y.dtype}, but y must be one whole "
                "number per example; let the dataset yield (x, class number)"
            )
        images = self.shots + self.queries
        ordered, order = y.long().sort(stable=True)
        if not torch.equal(ordered, torch.arange(self.ways).repeat_interleave(images)):
            raise self._explain_misfit(ordered, what)
        return x[order].unflatten(0, (self.ways, images))

    def _explain_misfit(self, labels: Tensor, what: str) -> ConfigError | DataError:
        classes, counts = labels.unique(return_counts=True)
        if len(classes) != self.ways:
            return ConfigError(
                f"ways is {self.ways}, but {what} has {len(classes)} classes; use ways={len(classes)}, or "
                f"NWays(n={self.ways}) in the Taskset"
            )
        if not torch.equal(classes, torch.arange(self.ways)):
            return DataError(
                f"{what} has the labels {_list_some(classes)}, but they must be 0..{self.ways - 1}; add RemapLabels to the "
                "Taskset's transforms"
            )
        images = self.shots + self.queries
        wrong = int((counts != images).int().argmax())
        return ConfigError(
            f"shots + queries is {self.shots} + {self.queries} = {images}, but class {wrong} of {what} has "
            f"{int(counts[wrong])} examples; use KShots(k={images}) in the Taskset, or other shots and queries"
        )


def _check_taskset(split: str, taskset: Any, kind: Any, tasks: int) -> None:
    if not isinstance(taskset, kind):
        raise ConfigError(
            f"{split} is a {type(taskset).__name__}, but it must be a learn2learn.data.Taskset; wrap the dataset with "
            "learn2learn.data.Taskset(MetaDataset(dataset), transforms)"
        )
    if split != "train" and 0 <= taskset.num_tasks < tasks:
        raise ConfigError(
            f"{split}_tasks is {tasks}, but the {split} Taskset holds {taskset.num_tasks} tasks, and one that counts twice "
            f"makes the interval too narrow; use {split}_tasks={taskset.num_tasks}, or build the Taskset with num_tasks=-1"
        )
    # learn2learn shuffles a set of them, and the order of a set of strings is another in every process
    foreign = next((label for label in taskset.dataset.labels if not isinstance(label, Number)), None)
    if foreign is not None:
        raise ConfigError(
            f"{split} has the class label {foreign!r}, but classes must be numbered for tasks to be the same in every process; "
            "let the dataset yield class numbers"
        )


def _list_some(values: Tensor, most: int = 5) -> str:
    return ", ".join(str(value) for value in values[:most].tolist()) + (", ..." if len(values) > most else "")
