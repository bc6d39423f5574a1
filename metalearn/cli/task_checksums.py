"""What tells one list of test tasks from another, so that only runs that were tested alike are compared task by task."""

from __future__ import annotations

import hashlib
from itertools import groupby
from typing import Any

import numpy as np

from metalearn.datamodules import ClassEpisodes, EpisodicDataModule
from metalearn.datamodules.episodes.task_table import list_task_lines

__all__ = ["checksum_test_tasks"]

MOST = 8
"""Tasks are a pure function of their number: lists that begin alike are alike as far as they go."""


def checksum_test_tasks(data: Any) -> list[str]:
    """A checksum of each of the first test tasks: of the names of classes and examples, or of numbers where there are none.

    It does not depend on how images are scaled. Data modules that are none of ours have none.
    """
    if not isinstance(data, EpisodicDataModule):
        return []
    count = min(MOST, data.tasks["test"])
    if isinstance(data, ClassEpisodes):
        lines = groupby(list_task_lines(data, "test", count), key=lambda line: line[0])
        return [_digest("\n".join(map(repr, task))) for _, task in lines]
    return [_digest(_spell(data.episode(data.seed, "test", index))) for index in range(count)]


def _spell(episode: Any) -> str:
    """All numbers of a task, to five digits, since machines differ in the last ones."""
    values = [np.round(part.double().numpy(), 5) + 0.0 for role in episode for part in role]
    return "\n".join(f"{value.shape} {value.tolist()}" for value in values)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]
