"""The table of predictions says what outputs mean: values, bands, and the probabilities of labels."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn import MAML, MLP
from metalearn.datamodules import FunctionEpisodes, SinusoidDataModule
from metalearn.inner import GaussianNLL
from metalearn.modules.callbacks.tables import PredictionTable
from tests.modules.episodic.test_evaluation import trainer
from tests.modules.episodic.test_measures import SMALL, labels


def bound(outputs: Tensor, deviations: float) -> list[float]:
    """Of a normal distribution by its mean and the softplus of its variance."""
    return (outputs[:, 0] + deviations * (F.softplus(outputs[:, 1]) + 1e-6).sqrt()).tolist()


CASES: dict[str, Any] = {
    "band": (GaussianNLL(share=0.9), 2, {"predicted0": lambda o: bound(o, 0), "lower0": lambda o: bound(o, -1.6448536),
                                         "upper0": lambda o: bound(o, 1.6448536)}),
    "quantiles": ("quantile", 3, {"predicted0": lambda o: o.sort(1).values[:, 1].tolist(),
                                  "lower0": lambda o: o.min(1).values.tolist(),
                                  "upper0": lambda o: o.max(1).values.tolist()}),
    "values": ("mse", 1, {"predicted0": lambda o: o[:, 0].tolist()}),
    "labels": ("binary_cross_entropy", 4, {f"p{k}": lambda o, k=k: (1 / (1 + (-o[:, k]).exp())).tolist() for k in range(4)}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_columns_are_what_the_outputs_mean(name: str, tmp_path: Path) -> None:
    loss, outputs, columns = CASES[name]
    data = FunctionEpisodes(labels, **SMALL) if name == "labels" else SinusoidDataModule(**SMALL)
    torch.manual_seed(0)
    module = MAML(MLP(inputs=3 if name == "labels" else 1, outputs=outputs), inner_steps=1, inner_lr=0.01, loss=loss)
    table = PredictionTable()
    trainer(tmp_path, callbacks=[table]).predict(module, datamodule=data)
    assert table.path is not None
    with table.path.open() as file:
        rows = list(csv.DictReader(file))
    targets = [f"target{k}" for k in range(4 if name == "labels" else 1)]
    assert list(rows[0]) == ["task", "query", *targets, *columns]
    tasks = [data.episode(0, "test", task) for task in range(7)]
    answers = torch.cat([module.adapt(task.support)(task.query.x) for task in tasks])
    for column, read in columns.items():
        assert [float(row[column]) for row in rows] == pytest.approx(read(answers), rel=1e-4, abs=1e-5)
