"""The metrics of a test beside the loss: each against another library, and where a run shows them."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import torchmetrics
from sklearn import metrics as sk
from torch import Tensor, nn

from metalearn import MAML, MLP, Batch, Episode
from metalearn.datamodules import FunctionEpisodes, SinusoidDataModule
from metalearn.inner import GaussianNLL, Quantiles
from metalearn.metrics import Calibration, measure_classes, measure_labels, measure_values
from metalearn.modules.callbacks.tables import TaskTable
from metalearn.modules.episodic.task_picture import draw_task
from tests.modules.episodic.test_evaluation import NoiseTasks, trainer
from tests.networks import TinyConv


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_macro_f1_is_that_of_scikit_learn() -> None:
    """Over the classes that occur; a label that is ignored counts for nothing, and pixels count as examples do."""
    logits, targets = noise(3, 7, 4), torch.randint(0, 3, (3, 7), generator=torch.Generator().manual_seed(1))
    targets[0, :2] = -100
    rows = [sk.f1_score(y[y >= 0], z.argmax(1)[y >= 0], average="macro") for z, y in zip(logits, targets, strict=True)]
    torch.testing.assert_close(measure_classes(logits, targets)["macro_f1"], torch.tensor(rows).double())
    places, pixels = noise(2, 3, 4, 5, 5), torch.randint(0, 4, (2, 3, 5, 5), generator=torch.Generator().manual_seed(2))
    rows = [
        sk.f1_score(y.flatten(), z.argmax(1).flatten(), average="macro") for z, y in zip(places, pixels, strict=True)
    ]
    torch.testing.assert_close(measure_classes(places, pixels)["macro_f1"], torch.tensor(rows).double())


def test_the_calibration_error_is_that_of_torchmetrics_over_all_tasks() -> None:
    ours, theirs = Calibration(), torchmetrics.CalibrationError(task="multiclass", num_classes=4, n_bins=15)
    for seed in range(3):
        logits = 2 * noise(5, 20, 4, seed=seed).float()
        targets = torch.randint(0, 4, (5, 20), generator=torch.Generator().manual_seed(seed))
        ours.update(logits, targets)
        theirs.update(logits.flatten(0, 1).softmax(1), targets.flatten())
    assert float(ours.compute()) == pytest.approx(float(theirs.compute()), rel=1e-5)


def test_metrics_of_several_labels_are_those_of_scikit_learn() -> None:
    scores, targets = noise(3, 9, 4), (noise(3, 9, 4, seed=1) > 0.3).long()
    found = measure_labels(scores, targets)
    for task, (z, y) in enumerate(zip(scores, targets, strict=True)):
        chosen = (z > 0).long()
        expected = {
            "exact_match": sk.accuracy_score(y, chosen),
            "f1_micro": sk.f1_score(y, chosen, average="micro"),
            "f1_macro": sk.f1_score(y, chosen, average="macro"),
            "average_precision": sk.average_precision_score(y, z, average="macro"),
        }
        assert {name: float(values[task]) for name, values in found.items()} == pytest.approx(expected)
    torch.testing.assert_close(measure_labels(scores.sigmoid(), targets, 0.5)["f1_micro"], found["f1_micro"])


def test_metrics_of_values_are_those_of_scikit_learn() -> None:
    points, targets, half = noise(3, 9, 2), noise(3, 9, 2, seed=1), noise(3, 9, 2, seed=2).abs()
    found = measure_values(points, targets, torch.stack([points - half, points + half]))
    for task, (z, y, h) in enumerate(zip(points, targets, half, strict=True)):
        expected = {
            "rmse": np.sqrt(sk.mean_squared_error(y, z)),
            "mae": sk.mean_absolute_error(y, z),
            "coverage": float(((y - z).abs() <= h).double().mean()),
        }
        assert {name: float(values[task]) for name, values in found.items()} == pytest.approx(expected)


def labels(generator: np.random.Generator) -> Any:
    x = generator.normal(size=(16, 3))
    y = (x @ generator.normal(size=(3, 4)) > 0).astype(float)
    return (x[:8], y[:8]), (x[8:], y[8:])


SMALL: dict[str, Any] = {"tasks_per_batch": 3, "train_tasks": 3, "val_tasks": 3, "test_tasks": 7}
RUNS: dict[str, tuple[Any, Any, list[str], str]] = {
    "classes": (lambda: MAML(TinyConv(), inner_steps=1), lambda: NoiseTasks(test_tasks=7),
                ["macro_f1", "calibration_error"], "macro F1"),
    "labels": (lambda: MAML(MLP(inputs=3, outputs=4), inner_steps=1, loss="binary_cross_entropy"),
               lambda: FunctionEpisodes(labels, **SMALL),
               ["exact_match", "f1_micro", "f1_macro", "average_precision"], "exact match"),
    "values": (lambda: MAML(MLP(inputs=1, outputs=1), inner_steps=1, inner_lr=0.01, loss="l1"),
               lambda: SinusoidDataModule(**SMALL),
               ["rmse", "mae"], "RMSE"),
    "band": (lambda: MAML(MLP(inputs=1, outputs=2), inner_steps=1, inner_lr=0.01, loss=GaussianNLL(share=0.8)),
             lambda: SinusoidDataModule(**SMALL), ["rmse", "mae", "coverage"], "coverage"),
    "own": (lambda: MAML(MLP(inputs=1, outputs=1), inner_steps=1, inner_lr=0.01, loss=lambda o, y: (o - y).abs().mean()),
            lambda: SinusoidDataModule(**SMALL), [], "test loss, 1 step"),
    "own_and_said": (lambda: MAML(MLP(inputs=1, outputs=1), inner_steps=1, inner_lr=0.01, loss=lambda o, y: (o - y).abs().mean(),
                                  task="regression"),
                     lambda: SinusoidDataModule(**SMALL), ["rmse", "mae"], "RMSE"),
}  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
def test_a_test_logs_writes_and_tells_the_metrics_that_fit(name: str, tmp_path: Path) -> None:
    make, data, expected, line = RUNS[name]
    module, table = make(), TaskTable()
    (logged,) = trainer(tmp_path, callbacks=[table]).test(module, datamodule=data())
    plain = {key.removeprefix("test/") for key in logged} - {"loss", "acc", "loss_ci95", "acc_ci95"}
    plain = {key for key in plain if "_step_" not in key and "_independent" not in key}
    assert plain == {*expected, *(f"{key}_ci95" for key in expected if key != "calibration_error")}
    assert table.path is not None
    with table.path.open() as file:
        rows = list(csv.DictReader(file))
    for key in expected:
        if key != "calibration_error":
            assert np.mean([float(row[key]) for row in rows]) == pytest.approx(logged[f"test/{key}"])
    facts = {fact.name: fact for fact in module.summary_facts("test")}
    assert line in facts
    assert {"rmse", "macro_f1", "exact_match"} & set(expected) <= {
        key for fact in facts.values() for key in fact.data.get("test", {})
    }


def test_a_metric_of_the_users_takes_the_place_of_ours(tmp_path: Path) -> None:
    module = MAML(
        MLP(inputs=1, outputs=1),
        inner_steps=1,
        inner_lr=0.01,
        loss="mse",
        metrics={"mae": torchmetrics.MeanAbsoluteError()},
    )
    (logged,) = trainer(tmp_path).test(module, datamodule=SinusoidDataModule(**SMALL))
    assert "test/mae" in logged
    assert "test/mae_ci95" not in logged
    assert "test/rmse_ci95" in logged


@pytest.mark.parametrize(("outputs", "loss"), [(2, "gaussian_nll"), (3, "quantile"), (1, Quantiles((0.5,)))])
def test_a_fit_with_a_band_is_drawn(outputs: int, loss: Any, tmp_path: Path) -> None:
    module = MAML(MLP(inputs=1, outputs=outputs), inner_steps=1, inner_lr=0.01, loss=loss)
    data = SinusoidDataModule(noise=0.3)
    assert draw_task(tmp_path / "episode.png", data, module, "run") == tmp_path / "episode.png"


def test_several_values_with_bands_are_drawn_against_their_targets(tmp_path: Path) -> None:
    class Data:
        def episode(self, seed: int, split: str, index: int) -> Episode:
            return Episode(
                Batch(noise(6, 3).float(), noise(6, 2).float()), Batch(noise(9, 3).float(), noise(9, 2).float())
            )

    module = MAML(nn.Linear(3, 4), inner_steps=1, inner_lr=0.01, loss="gaussian_nll")
    assert draw_task(tmp_path / "episode.png", Data(), module, "run") is not None


def test_noise_leaves_the_sinusoids_and_their_points_as_they_are() -> None:
    clean, noisy = (SinusoidDataModule(shots=500, queries=500, noise=size) for size in (0.0, 0.3))
    for split in ("train", "test"):
        one, other = (data.episode(seed=1, split=split, index=5) for data in (clean, noisy))
        for role, with_noise in zip(one, other, strict=True):
            torch.testing.assert_close(role.x, with_noise.x, rtol=0, atol=0)
            errors = with_noise.y - role.y
            assert float(errors.std()) == pytest.approx(0.3, rel=0.1)
            assert abs(float(errors.mean())) < 0.05


def test_metrics_are_the_same_whatever_the_batch() -> None:
    values = []
    for size in (1, 4):
        data = SinusoidDataModule(**{**SMALL, "train_tasks": 4, "tasks_per_batch": size})
        run = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
        torch.manual_seed(0)
        module = MAML(MLP(inputs=1, outputs=2), inner_steps=1, inner_lr=0.01, loss="gaussian_nll")
        values.append(run.test(module, datamodule=data, verbose=False)[0])
    assert values[0] == pytest.approx(values[1], rel=1e-5)
