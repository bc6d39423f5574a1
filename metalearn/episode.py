"""An episode: the support and query sets of a batch of tasks, and the checks on their shapes.

Legend, used in every docstring of this package: ``B`` tasks, ``N`` ways, ``K`` shots, ``Q`` queries per class,
``C, H, W`` an image, ``D`` parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metalearn.errors import ShapeError

__all__ = ["Batch", "Episode", "SemiSupervisedEpisode", "check_batch", "check_episode", "check_labels", "count_tasks"]


class Batch(NamedTuple):
    """Inputs and targets of one role (support or query).

    Attributes:
        x: ``[B, n, ...]`` inputs, or ``[n, ...]`` for a single task.
        y: ``[B, n]`` integer classes in ``0..N-1``, ``[B, n, H, W]`` integer classes of places, or ``[B, n, ...]`` float
            targets; without ``B`` for a single task.

    Example:
        >>> import torch
        >>> from metalearn import Batch
        >>> support = Batch(x=torch.randn(10, 8), y=torch.arange(5).repeat(2))  # one task
        >>> support.x.shape, support.y.shape
        (torch.Size([10, 8]), torch.Size([10]))
    """

    x: Tensor
    y: Tensor


class Episode(NamedTuple):
    """A batch of tasks: ``support`` has ``n = N*K`` examples a task, ``query`` has ``n = N*Q``.

    Example:
        >>> import torch
        >>> from metalearn import Batch, Episode
        >>> y = torch.arange(5).repeat(4, 1)  # four tasks, an example of each of five classes
        >>> episode = Episode(Batch(torch.randn(4, 5, 8), y), Batch(torch.randn(4, 5, 8), y))
        >>> episode.query.x.shape
        torch.Size([4, 5, 8])
    """

    support: Batch
    query: Batch


class SemiSupervisedEpisode(NamedTuple):
    """An episode with unlabeled examples beside its support set (Ren et al. 2018).

    The modules of this package leave them out; they are for algorithms that use them.

    Attributes:
        support: as in :class:`Episode`.
        query: as in :class:`Episode`.
        unlabeled: ``x`` ``[B, u, ...]`` in random order; ``y`` ``[B, u]`` holds the true classes, to measure with and not to
            learn from: ``0..N-1``, or -1 for a distractor, which belongs to none of the ``N`` classes.

    Example:
        >>> import numpy as np
        >>> from metalearn.datamodules import ArrayEpisodes, EpisodeOptions
        >>> x, y = np.random.rand(400, 8), np.repeat(np.arange(20), 20)  # 20 classes of 20 rows
        >>> data = ArrayEpisodes(x, y, ways=3, queries=5, options=EpisodeOptions(unlabeled=4))
        >>> data.episode(seed=0, split="train", index=0).unlabeled.x.shape
        torch.Size([12, 8])
    """

    support: Batch
    query: Batch
    unlabeled: Batch


def count_tasks(batch: Any) -> int:
    """The tasks of a batch: of an episode, or of a list of them; 0 of what is no batch of tasks.

    Example:
        >>> import torch
        >>> from metalearn.episode import count_tasks
        >>> count_tasks({"image": torch.zeros(8, 3)})
        0
    """
    if isinstance(batch, list) and all(isinstance(task, (Episode, SemiSupervisedEpisode)) for task in batch):
        return sum(len(task.support.x) for task in batch)
    if not isinstance(batch, (Episode, SemiSupervisedEpisode)) and type(batch) not in (tuple, list):
        return 0
    pairs = all(isinstance(part, (tuple, list)) and len(part) == 2 for part in batch)
    if not pairs or len(batch) < 2 or not isinstance(batch[0][0], Tensor) or batch[0][0].ndim < 2:
        return 0
    return len(batch[0][0])


def check_batch(batch: Any, role: str) -> Batch:
    """Check one task's examples (no task axis), and return them.

    Raises:
        ShapeError: they are no pair of tensors, ``x`` and ``y`` disagree on the number of examples, there are none, or an entry
            is not finite.

    Example:
        >>> import torch
        >>> from metalearn.episode import check_batch
        >>> check_batch((torch.zeros(3, 2), torch.tensor([0, 1, 2])), "support").y
        tensor([0, 1, 2])
    """
    if not isinstance(batch, Sequence) or len(batch) != 2:
        raise ShapeError(
            f"{role} is a {type(batch).__name__}, but it must be a pair Batch(x, y); give examples and targets"
        )
    batch = Batch(*batch)
    if not isinstance(batch.x, Tensor) or not isinstance(batch.y, Tensor):
        raise ShapeError(
            f"{role}: x is {type(batch.x).__name__} and y is {type(batch.y).__name__}, but both must be tensors; "
            "convert them with torch.as_tensor"
        )
    if batch.y.ndim == 0 or batch.x.ndim == 0 or batch.x.shape[0] == 0 or batch.x.shape[0] != batch.y.shape[0]:
        raise ShapeError(
            f"{role}: x has shape {list(batch.x.shape)} and y {list(batch.y.shape)}, but both must start with the same "
            "number of examples, at least 1; check how the batch is built"
        )
    for name, values in zip(("x", "y"), batch, strict=True):
        bad = ~values.isfinite().reshape(len(values), -1).all(1)
        if bool(bad.any()):
            raise ShapeError(
                f"{role}: {name} of example {int(bad.int().argmax())} has an entry that is not finite, but all must be; "
                "check the data"
            )
    return batch


def check_episode(episode: Episode) -> int:
    """Check that an episode carries the task axis everywhere, and return the number of tasks ``B``.

    Raises:
        ShapeError: the task axis is missing, the four tensors disagree on it, or support and query have other dimensions.

    Example:
        >>> import torch
        >>> from metalearn import Batch, Episode
        >>> from metalearn.episode import check_episode
        >>> role = Batch(torch.zeros(4, 5, 8), torch.arange(5).repeat(4, 1))
        >>> check_episode(Episode(role, role))
        4
    """
    for role, batch in zip(("support", "query"), episode, strict=True):
        if not torch.is_floating_point(batch.y) and batch.y.ndim < 2:
            raise ShapeError(
                f"{role}: class labels have shape {list(batch.y.shape)}, but an episode needs [tasks, examples]; "
                "add the task axis with y.unsqueeze(0) and x.unsqueeze(0)"
            )
        if batch.x.ndim < 2 or batch.y.ndim < 2 or batch.x.shape[:2] != batch.y.shape[:2]:
            raise ShapeError(
                f"{role}: x has shape {list(batch.x.shape)} and y {list(batch.y.shape)}, but an episode needs "
                "x [tasks, examples, ...] and y [tasks, examples, ...] that agree; add the task axis with unsqueeze(0)"
            )
        if batch.x.shape[0] == 0 or batch.x.shape[1] == 0:
            raise ShapeError(
                f"{role}: x has shape {list(batch.x.shape)}, but there must be a task and an example in it"
            )
    tasks = episode.support.x.shape[0]
    if episode.query.x.shape[0] != tasks:
        raise ShapeError(
            f"support holds {tasks} tasks and query {episode.query.x.shape[0]}, but they must be the same tasks; "
            "build both from the same list of tasks"
        )
    for name, support, query in (("x", episode.support.x, episode.query.x), ("y", episode.support.y, episode.query.y)):
        if support.ndim != query.ndim and support.is_floating_point() == query.is_floating_point():
            raise ShapeError(
                f"{name} has shape {list(support.shape)} in support and {list(query.shape)} in query, but both must have as "
                f"many dimensions; make both in the same way, such as with {name}[..., None]"
            )
    return tasks


def check_labels(y: Tensor, outputs: int, role: str, ignored: int = -100) -> None:
    """Check that class labels ``[B, n, ...]`` lie in ``0..outputs-1``, those that the loss ignores aside.

    Raises:
        ShapeError: a label lies outside, or a task has none but ignored ones.

    Example:
        >>> import torch
        >>> from metalearn import ShapeError
        >>> from metalearn.episode import check_labels
        >>> check_labels(torch.tensor([[0, 4]]), outputs=5, role="query")
        >>> try:
        ...     check_labels(torch.tensor([[0, 5]]), outputs=5, role="query")
        ... except ShapeError as error:
        ...     print(str(error).split(",")[0])
        query: label 5 is outside 0..4
    """
    low, high = int(y.min()), int(y.max())
    if low >= 0 and high < outputs and not low <= ignored <= high:
        return
    left_out = y == ignored
    empty = left_out.flatten(1).all(1)
    if bool(empty.any()):
        raise ShapeError(
            f"{role}: every label of task {int(empty.int().argmax())} is {ignored}, which the loss ignores, so that the loss is "
            "undefined; leave such tasks out"
        )
    kept = y.masked_select(~left_out)
    low, high = int(kept.min()), int(kept.max())
    if low < 0 or high >= outputs:
        worst = low if low < 0 else high
        raise ShapeError(
            f"{role}: label {worst} is outside 0..{outputs - 1}, the classes that the model's {outputs} outputs can name; "
            "renumber the classes of each task from 0, or build the model with more ways (integer targets are class labels: for "
            "regression they must be floats)"
        )
