"""Metrics of users: the values of all tasks together, reset between epochs, kept out of the module's state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torchmetrics
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassRecall

from metalearn import MAML, ConfigError
from metalearn.datamodules import SinusoidDataModule
from tests.modules.episodic.test_evaluation import NoiseTasks, trainer
from tests.networks import TinyConv


def predicted(run: Any, module: MAML, data: NoiseTasks) -> tuple[Tensor, Tensor]:
    """The probabilities and classes of all queries of the test tasks."""
    batches = run.predict(module, datamodule=data)
    truths = [data.episode(0, "test", index).query.y for index in range(10)]
    return torch.cat([each.flatten(0, 1) for each in batches]), torch.cat(truths).flatten()


class Noise(NoiseTasks):
    """Predicts its test tasks."""

    def episode(self, seed: int, split: str, index: int) -> Any:
        return self.draw(seed, split, [index])


def test_metrics_are_of_all_queries_together(tmp_path: Path) -> None:
    recall = MulticlassRecall(3, average="none")
    given = {"f1": torchmetrics.F1Score(task="multiclass", num_classes=3, average="macro"), "recall": recall}
    module, data = MAML(TinyConv(), inner_steps=2, metrics=given), Noise()
    names = module.state_dict().keys()
    run = trainer(tmp_path)
    for _ in range(2):  # nothing of the first test is left in the second
        (found,) = run.test(module, datamodule=data, verbose=False)
    shares, truth = predicted(run, module, data)
    chosen = shares.argmax(-1)
    hits = [float(((chosen == way) & (truth == way)).sum()) for way in range(3)]
    recalls = [hit / float((truth == way).sum()) for way, hit in enumerate(hits)]
    precisions = [hit / max(float((chosen == way).sum()), 1.0) for way, hit in enumerate(hits)]
    ones = [2 * p * r / (p + r) if p + r else 0.0 for p, r in zip(precisions, recalls, strict=True)]
    assert found["test/f1"] == pytest.approx(sum(ones) / 3, rel=1e-5)
    assert [found[f"test/recall_{way}"] for way in range(3)] == pytest.approx(recalls, rel=1e-5)
    assert recall._update_count == 0  # copies are updated
    assert module.state_dict().keys() == names == MAML(TinyConv(), inner_steps=2).state_dict().keys()


def test_metrics_of_regression_and_how_they_are_given(tmp_path: Path) -> None:
    data = SinusoidDataModule(train_tasks=8, val_tasks=4, test_tasks=4, tasks_per_batch=2)
    collection = torchmetrics.MetricCollection([torchmetrics.MeanSquaredError(), torchmetrics.MeanAbsoluteError()])
    for metrics in (collection, [torchmetrics.MeanSquaredError(), torchmetrics.MeanAbsoluteError()]):
        module = MAML(nn.Linear(1, 1), inner_lr=0.01, loss="mse", metrics=metrics)
        run = trainer(tmp_path)
        run.fit(module, datamodule=data)
        assert float(run.callback_metrics["val/MeanSquaredError"]) == pytest.approx(
            float(run.callback_metrics["val/loss"])
        )
        (found,) = run.test(module, datamodule=data, verbose=False)
        assert found["test/MeanSquaredError"] == pytest.approx(found["test/loss"])
        assert 0 < found["test/MeanAbsoluteError"] < found["test/MeanSquaredError"] ** 0.5
    single = MAML(nn.Linear(1, 1), inner_lr=0.01, loss="mse", metrics=torchmetrics.MeanSquaredError())
    (found,) = trainer(tmp_path).validate(single, datamodule=data, verbose=False)
    assert found["val/MeanSquaredError"] == pytest.approx(found["val/loss"])


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        (3, "metrics holds a int"),
        ([MulticlassAccuracy], "metrics holds a MulticlassAccuracy itself.*an instance"),
        ({"acc": MulticlassAccuracy(3)}, "'acc' twice, or as the module's own"),
        ([MulticlassAccuracy(3), MulticlassAccuracy(3, top_k=2)], "'MulticlassAccuracy' twice"),
        ([MulticlassConfusionMatrix(3)], r"gives a tensor of shape \[3, 3\], but only numbers"),
        ([MulticlassAccuracy(2)], r"MulticlassAccuracy cannot take outputs of shape \[36, 3\]"),
    ],
)
def test_metrics_that_do_not_fit_are_one_line(metrics: Any, message: str, tmp_path: Path) -> None:
    def run() -> None:
        module = MAML(TinyConv(), inner_steps=1, metrics=metrics)
        trainer(tmp_path).validate(module, datamodule=NoiseTasks(), verbose=False)

    with pytest.raises(ConfigError, match=message) as caught:
        run()
    assert "\n" not in str(caught.value)
