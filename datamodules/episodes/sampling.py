"""Which classes and images make up an episode: a pure function of (seed, split, index)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from metalearn.checks import Range
from metalearn.datamodules.episodes.randomness import ORDER, SHAPES, draw_words

__all__ = ["Draw", "Recipe", "TaskRows", "draw_episodes", "draw_order", "draw_task"]


class TaskRows(NamedTuple):
    """One task: numbers of examples and their labels; of the unlabeled ones, -1 is a distractor's.

    Attributes:
        support: ``[n]``, class by class.
        support_y: ``[n]`` in ``0..N-1``.
        query: ``[m]``, class by class.
        query_y: ``[m]``.
        unlabeled: ``[u]``, in random order.
        unlabeled_y: ``[u]``.
    """

    support: np.ndarray
    support_y: np.ndarray
    query: np.ndarray
    query_y: np.ndarray
    unlabeled: np.ndarray
    unlabeled_y: np.ndarray


class Recipe(NamedTuple):
    """What a task is made of.

    Attributes:
        ways: the fewest and the most classes.
        shots: the fewest and the most support examples of a class.
        queries: the fewest and the most query examples of a class.
        balanced: all classes of a task have the same number of shots.
        unlabeled: unlabeled examples of each class.
        distractors: classes with unlabeled examples alone.
        aligned: all classes of a task give the examples of the same numbers.
    """

    ways: Range
    shots: Range
    queries: Range
    balanced: bool = True
    unlabeled: int = 0
    distractors: int = 0
    aligned: bool = False

    @property
    def varies(self) -> bool:
        """Whether tasks differ in shape."""
        return any(low != high for low, high in (self.ways, self.shots, self.queries))

    @property
    def most(self) -> int:
        """The most examples of one class that a task takes."""
        return self.shots[1] + self.queries[1] + self.unlabeled


class Draw(NamedTuple):
    """The classes and examples of one task before they are dealt out.

    They are ``classes`` ``[N + distractors]``, ``examples`` ``[N + distractors, most]`` within their class, and the task's own
    ``shots`` ``[N]`` and ``queries``.
    """

    classes: np.ndarray
    examples: np.ndarray
    shots: np.ndarray
    queries: int


def draw_task(
    seed: int, split: str, index: int, counts: np.ndarray, recipe: Recipe, groups: Sequence[np.ndarray] | None
) -> Draw:
    """Draw one task whose shape, and whose group of classes, may vary.

    Where nothing varies and there are no groups, the classes and examples are those of :func:`draw_episodes`.

    Args:
        seed: the data module's seed.
        split: ``"train"``, ``"val"`` or ``"test"``.
        index: the number of the episode.
        counts: ``[classes]`` the examples of each class of the split.
        recipe: what a task is made of.
        groups: positions in ``counts`` of the classes of each group that a task may be drawn from; ``None`` for no groups.
    """
    words = draw_words(seed, split, np.asarray([index]), 4 + recipe.ways[1], SHAPES)[0]
    allowed = np.arange(len(counts)) if groups is None else groups[_pick(words[0], 0, len(groups) - 1)]
    ways = _pick(words[1], recipe.ways[0], min(recipe.ways[1], len(allowed) - recipe.distractors))
    queries = _pick(words[2], *recipe.queries)
    if recipe.balanced:
        shots = np.full(ways, _pick(words[3], *recipe.shots))
    else:
        shots = np.asarray([_pick(word, *recipe.shots) for word in words[4 : 4 + ways]])
    picked, examples = draw_episodes(
        seed, split, np.asarray([index]), counts[allowed], ways + recipe.distractors, recipe.most, recipe.aligned
    )
    return Draw(allowed[picked[0]], examples[0], shots, queries)


def draw_order(seed: int, split: str, index: int, count: int) -> np.ndarray:
    """A random order of ``count`` things that belong to a task."""
    return np.argsort(draw_words(seed, split, np.asarray([index]), count, ORDER)[0], kind="stable")


def draw_episodes(
    seed: int, split: str, indices: np.ndarray, counts: np.ndarray, ways: int, images: int, aligned: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Draw classes and images without replacement, for a whole batch of episodes at once.

    Args:
        seed: the data module's seed.
        split: ``"train"``, ``"val"`` or ``"test"``.
        indices: ``[B]`` the numbers of the episodes.
        counts: ``[classes]`` the images of each class of the split.
        ways: ``N``.
        images: images drawn per class, ``K + Q``.
        aligned: the classes of an episode have the numbers of their images in common.

    Returns:
        classes ``[B, N]``, in random order (the order is the labelling), and images ``[B, N, K + Q]`` within their class.
    """
    classes = len(counts)
    largest = int(counts.max())
    words = draw_words(seed, split, indices, ways + ways * largest)
    picked = _draw_distinct(words[:, :ways], classes)
    keys = words[:, ways:].reshape(len(words), ways, largest)
    sizes = counts[picked]
    if aligned:
        keys, sizes = (
            np.broadcast_to(keys[:, :1], keys.shape),
            np.broadcast_to(sizes.min(1, keepdims=True), sizes.shape),
        )
    if int(counts.min()) != largest:
        keys = np.where(np.arange(largest) < sizes[..., None], keys >> np.uint64(1), np.uint64(2**64 - 1))
    # the position rides in the low bits of its key, so that one sort of whole words is the permutation
    low = np.uint64(max(1, int(largest - 1).bit_length()))
    tagged = (keys >> low << low) | np.arange(largest, dtype=np.uint64)
    tagged.sort(-1)
    mask = (np.uint64(1) << low) - np.uint64(1)
    return picked, (tagged[..., :images] & mask).astype(np.int64)


def _pick(word: np.uint64, low: int, high: int) -> int:
    """A uniform whole number in ``low..high``."""
    return low + ((int(word) >> 32) * (high - low + 1) >> 32)


def _draw_distinct(words: np.ndarray, limit: int) -> np.ndarray:
    """Uniform ordered draws without replacement from ``0..limit-1``: the i-th draw picks among those that are left."""
    picked = np.empty(words.shape, np.int64)
    for way in range(words.shape[1]):
        left = np.uint64(limit - way)
        choice = (((words[:, way] >> np.uint64(32)) * left) >> np.uint64(32)).astype(np.int64)
        for previous in np.sort(picked[:, :way], axis=1).T:
            choice += choice >= previous
        picked[:, way] = choice
    return picked
