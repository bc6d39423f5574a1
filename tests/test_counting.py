"""How many tasks a batch holds, whatever batch it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from metalearn.datamodules import LevelBatch
from metalearn.episode import Batch, Episode, count_tasks

PART = Batch(torch.zeros(4, 5, 3), torch.zeros(4, 5))
EPISODE = Episode(PART, PART)


@pytest.mark.parametrize(
    ("batch", "tasks"),
    [
        (EPISODE, 4),
        ([EPISODE, EPISODE], 8),
        ((tuple(PART), tuple(PART)), 4),
        (LevelBatch(PART, PART), 0),  # type: ignore[arg-type]
        (torch.zeros(8, 3), 0),
        ({"image": torch.zeros(8, 3)}, 0),
        ([torch.zeros(8, 3), torch.zeros(8)], 0),
        ((torch.zeros(8, 3),), 0),
        ([], 0),
        (None, 0),
    ],
)
def test_what_is_no_batch_of_tasks_has_none(batch: Any, tasks: int) -> None:
    assert count_tasks(batch) == tasks
