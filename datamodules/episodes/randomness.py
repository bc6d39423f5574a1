"""Counter-based random numbers: a pure function of (seed, split, episode index, slot), for many episodes at once."""

from __future__ import annotations

import numpy as np

from metalearn.datamodules.sources.listing import SPLITS

__all__ = ["ORDER", "SHAPES", "draw_uniform", "draw_words"]

SHAPES, ORDER = 1, 2
"""Streams beside the one that classes and images are drawn from: the shapes of tasks, and the order of unlabeled images."""

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
