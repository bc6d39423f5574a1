"""Which classes and images make up an episode: a pure function of (seed, split, index)."""

from __future__ import annotations

import numpy as np

from metalearn.datamodules.randomness import draw_words

__all__ = ["draw_episodes"]


def draw_episodes(
    seed: int, split: str, indices: np.ndarray, counts: np.ndarray, ways: int, images: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw classes and images without replacement, for a whole batch of episodes at once.

    Args:
        seed: the data module's seed.
        split: ``"train"``, ``"val"`` or ``"test"``.
        indices: ``[B]`` the numbers of the episodes.
        counts: ``[classes]`` the images of each class of the split.
        ways: ``N``.
        images: images drawn per class, ``K + Q``.

    Returns:
        classes ``[B, N]``, in random order (the order is the labelling), and images ``[B, N, K + Q]`` within their class.
    """
    classes = len(counts)
    largest = int(counts.max())
    words = draw_words(seed, split, indices, ways + ways * largest)
    picked = _distinct(words[:, :ways], classes)
    keys = words[:, ways:].reshape(len(words), ways, largest)
    sizes = counts[picked]
    if int(counts.min()) != largest:
        keys = np.where(np.arange(largest) < sizes[..., None], keys >> np.uint64(1), np.uint64(2**64 - 1))
    # the position rides in the low bits of its key, so that one sort of whole words is the permutation
    low = np.uint64(max(1, int(largest - 1).bit_length()))
    tagged = (keys >> low << low) | np.arange(largest, dtype=np.uint64)
    tagged.sort(-1)
    mask = (np.uint64(1) << low) - np.uint64(1)
    return picked, (tagged[..., :images] & mask).astype(np.int64)


def _distinct(words: np.ndarray, limit: int) -> np.ndarray:
    """Uniform ordered draws without replacement from ``0..limit-1``: the i-th draw picks among those that are left."""
    picked = np.empty(words.shape, np.int64)
    for way in range(words.shape[1]):
        left = np.uint64(limit - way)
        choice = (((words[:, way] >> np.uint64(32)) * left) >> np.uint64(32)).astype(np.int64)
        for previous in np.sort(picked[:, :way], axis=1).T:
            choice += choice >= previous
        picked[:, way] = choice
    return picked
