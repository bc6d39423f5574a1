"""Tasks that a function makes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch

from metalearn import MAML, MLP, DataError
from metalearn.datamodules import FunctionEpisodes


def line(generator: np.random.Generator) -> Any:
    slope, x = generator.normal(), generator.uniform(-1, 1, (9, 1))
    return (x[:4], slope * x[:4]), (x[4:], slope * x[4:])


def test_a_function_makes_tasks_that_are_pure_functions_of_their_number() -> None:
    data = FunctionEpisodes(line, tasks_per_batch=3, train_tasks=6)
    batch = next(iter(data.train_dataloader()))
    assert batch.query.x.shape == (3, 5, 1)
    for index in range(3):
        assert torch.equal(batch.query.y[index], data.episode(0, "train", index).query.y)
    slopes = (batch.query.y / batch.query.x)[:, 0, 0]
    assert len(torch.unique(slopes)) == 3
    assert not torch.equal(data.episode(0, "test", 0).query.x, data.episode(0, "train", 0).query.x)
    trainer = L.Trainer(max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.fit(MAML(MLP(inputs=1, outputs=1), inner_steps=1, inner_lr=0.01, loss="mse"), datamodule=data)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda generator: (1, 2), "function made a tuple for train task 0, but it must make"),
        (
            lambda generator: ((n := np.zeros((int(generator.integers(1, 50)), 1)), n), (n, n)),
            "made tasks of the shapes",
        ),
    ],
)
def test_a_function_that_makes_no_tasks_is_one_line(function: Callable[..., Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        FunctionEpisodes(function, tasks_per_batch=25).draw(0, "train", list(range(25)))
