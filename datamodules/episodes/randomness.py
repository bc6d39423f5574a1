"""All randomness of the data: pure functions of whole numbers or of a task's own images, never of a global generator.

Episodes are drawn from counter-based words, of which many episodes' are computed at once. What needs a generator of its own
has one that depends on the same numbers: a task that a user's function makes, and a batch of a bilevel problem. The
augmentation of a task, which has lost its number on its way to the device, is seeded by a checksum of its images.
"""

from __future__ import annotations

import zlib

import numpy as np
from torch import Tensor

from metalearn.datamodules.sources.listing import SPLITS

__all__ = [
    "CONSTANT",
    "ORDER",
    "SHAPES",
    "checksum_tasks",
    "draw_uniform",
    "draw_words",
    "make_generator",
    "make_task_generator",
]

SHAPES, ORDER = 1, 2
"""Streams beside the one that classes and images are drawn from: the shapes of tasks, and the order of unlabeled images."""

CONSTANT = 20210803
"""The seed of what is the same for every run: splits and the places of wrong labels."""
STRIDE = 61
"""Every so many values of a support set make up its checksum."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(words: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014): a bijection of 64-bit words that mixes all bits."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def draw_words(seed: int, split: str, indices: np.ndarray, slots: int, stream: int = 0) -> np.ndarray:
    """Random 64-bit words ``[B, slots]``; row ``b`` depends on ``indices[b]`` alone. Streams are independent."""
    with np.errstate(over="ignore"):
        key = _mix(
            np.array([seed & 0xFFFFFFFFFFFFFFFF], np.uint64)
            + _GOLDEN * np.uint64(SPLITS.index(split) + 1 + len(SPLITS) * stream)
        )
        episode = _mix(np.asarray(indices).astype(np.uint64) * _GOLDEN + key)
        counter = np.arange(1, slots + 1, dtype=np.uint64) * _GOLDEN
        return _mix(episode[:, None] + counter)


def draw_uniform(seed: int, split: str, indices: np.ndarray, slots: int) -> np.ndarray:
    """Uniform numbers in [0, 1) of float64, ``[B, slots]``."""
    return (draw_words(seed, split, indices, slots) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def make_task_generator(seed: int, split: str, index: int) -> np.random.Generator:
    """A NumPy generator that belongs to one task: it is keyed by words of the task."""
    words = draw_words(seed, split, np.asarray([index]), 4)[0]
    return np.random.Generator(np.random.Philox(key=words[:2], counter=[*words[2:], 0, 0]))


def make_generator(*numbers: int) -> np.random.Generator:
    """A NumPy generator that depends on these whole numbers alone: a seed, the number of a batch, :data:`CONSTANT`."""
    return np.random.default_rng(list(numbers))


def checksum_tasks(x: Tensor) -> list[int]:
    """A seed for each task, a checksum of its inputs ``[B, n, ...]``.

    A task is a pure function of (seed, split, index), so its checksum is one too, on whatever rank, by whatever worker and
    after whatever restart it is drawn.
    """
    rows = x.flatten(1)[:, ::STRIDE].cpu().contiguous()
    return [zlib.crc32(row.numpy().tobytes()) for row in rows]
