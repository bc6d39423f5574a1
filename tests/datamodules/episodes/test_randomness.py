"""Episodes are the same in every release: what is drawn from the same numbers is pinned."""

from __future__ import annotations

import hashlib
import zlib

import numpy as np
import pytest
import torch

from metalearn.datamodules.episodes.randomness import (
    checksum_tasks,
    draw_uniform,
    draw_words,
    make_generator,
    make_task_generator,
)
from metalearn.datamodules.episodes.sampling import Recipe, draw_episodes, draw_order, draw_task

INDICES = np.asarray([0, 1, 1000, 2**33 + 1])
COUNTS = np.asarray([20, 9, 31, 12, 7, 8])
RECIPE = Recipe(ways=(2, 4), shots=(1, 2), queries=(1, 3), balanced=False, unlabeled=1, distractors=1)


def digest(*values: object) -> str:
    """A short checksum of numbers and arrays, with their types and shapes."""
    checksum = hashlib.sha256()
    for value in values:
        array = np.ascontiguousarray(value)
        checksum.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
    return checksum.hexdigest()[:16]


@pytest.mark.parametrize(
    ("split", "seed", "words", "episodes", "tasks"),
    [
        ("train", 0, "331e78cbc23726db", "bef8e8e6fe7414d7", "2be71e0029e54bc3"),
        ("train", 2**40 + 3, "fec2ea625331dfaa", "61256739ee1dbd64", "999ad6a44f640950"),
        ("val", 7, "0efad7c98ffaf211", "2d400af076491ac1", "35ff27bd46c1f0a1"),
        ("test", 0, "b16932ff548871e1", "389c2e430d48486a", "f86c1584becf940e"),
    ],
)
def test_what_is_drawn_is_the_same_in_every_release(
    split: str, seed: int, words: str, episodes: str, tasks: str
) -> None:
    streams = (draw_words(seed, split, INDICES, 5), draw_words(seed, split, INDICES, 3, 2))
    assert digest(*streams, draw_uniform(seed, split, INDICES, 4)) == words
    assert digest(*draw_episodes(seed, split, INDICES, COUNTS, 4, 6)) == episodes
    drawn = [value for index in INDICES.tolist() for value in draw_task(seed, split, index, COUNTS, RECIPE, None)]
    assert digest(*drawn, draw_order(seed, split, 5, 9)) == tasks


def test_generators_depend_on_their_numbers_alone() -> None:
    words = draw_words(3, "val", np.asarray([5]), 4)[0]
    expected = np.random.Generator(np.random.Philox(key=words[:2], counter=[int(words[2]), int(words[3]), 0, 0]))
    assert np.array_equal(make_task_generator(3, "val", 5).random(8), expected.random(8))
    assert np.array_equal(make_generator(7, 2, 1).permutation(50), np.random.default_rng([7, 2, 1]).permutation(50))
    assert np.array_equal(make_generator(11).random(8), np.random.default_rng(11).random(8))


def test_a_checksum_is_that_of_a_task_alone() -> None:
    x = torch.rand(3, 5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    seeds = checksum_tasks(x)
    assert seeds == [zlib.crc32(task.flatten()[::61].numpy().tobytes()) for task in x]
    assert checksum_tasks(x[1:2]) == seeds[1:2]
