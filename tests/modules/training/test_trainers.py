"""What a user's Trainer may be set to, and modules inside of modules: it works, and the numbers are right."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    StochasticWeightAveraging,
)  # fmt: skip
from torch import Tensor, nn

from metalearn import MAML, Batch, ConfigError
from metalearn.modules.callbacks.tables import PredictionTable, TaskTable
from tests.modules.episodic.test_evaluation import NoiseTasks, trainer
from tests.modules.episodic.test_loss_modules import LearnedLoss
from tests.networks import TinyConv


class Mine(L.LightningModule):
    """A project's own module around ours."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = MAML(TinyConv(), inner_steps=1, inner_lr=0.1)

    def training_step(self, batch: Any, index: int) -> Tensor:
        return self.inner.training_step(batch, index)

    def validation_step(self, batch: Any, index: int) -> None:
        scores = self.inner.validation_step(batch, index)
        self.log_dict({f"mine/{name}": value for name, value in scores.items()}, batch_size=len(batch.support.x))

    def test_step(self, batch: Any, index: int) -> None:
        self.log("mine/acc", self.inner.test_step(batch, index)["acc"], batch_size=len(batch.support.x))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


@pytest.mark.parametrize(
    "arguments", [{}, {"inference_mode": False}, {"precision": "64-true"}, {"precision": "bf16-true"}]
)
def test_a_module_inside_a_users_own_logs_nothing_and_gives_its_values(
    arguments: dict[str, Any], tmp_path: Path
) -> None:
    mine, data = Mine(), NoiseTasks()
    run = trainer(tmp_path, **arguments)
    run.fit(mine, datamodule=data)
    assert run.callback_metrics.keys() == {"mine/loss", "mine/acc"}
    (found,) = run.test(mine, datamodule=data, verbose=False)
    (own,) = trainer(tmp_path, **arguments).test(mine.inner, datamodule=data, verbose=False)
    assert found["mine/acc"] == pytest.approx(own["test/acc"], rel=1e-6)


def test_steps_called_by_hand() -> None:
    module = MAML(TinyConv(), inner_steps=1, inner_lr=0.1)
    tasks = NoiseTasks().draw(0, "train", [0, 1])
    loss = module.training_step(tasks, 0)
    assert loss.requires_grad
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            value = module.training_step(tasks, 0)
            assert float(value) == pytest.approx(loss.item(), rel=1e-6)
            assert not value.requires_grad
            assert float(module.validation_step(tasks, 0)["loss"]) == pytest.approx(loss.item(), rel=1e-6)
    module.test_step(tasks, 0)
    module.on_test_epoch_end()
    assert module.test_results()["loss", 1].mean == pytest.approx(loss.item(), rel=1e-6)


class Several(NoiseTasks):
    """Two loaders of tasks for each stage: the second has the test tasks."""

    def val_dataloader(self) -> Any:
        return [super().val_dataloader(), super().test_dataloader()]

    def test_dataloader(self) -> Any:
        return [super().test_dataloader(), super().val_dataloader()]

    def predict_dataloader(self) -> Any:
        return self.test_dataloader()


def test_several_loaders_are_told_apart(tmp_path: Path) -> None:
    module, table = MAML(TinyConv(), inner_steps=1, inner_lr=0.1), TaskTable()
    run = trainer(tmp_path, callbacks=[table, PredictionTable()])
    run.fit(module, datamodule=Several())
    values = {name: float(value) for name, value in run.callback_metrics.items()}
    single = trainer(tmp_path)
    (first,) = single.validate(module, datamodule=NoiseTasks(), verbose=False)
    (second,) = single.test(module, datamodule=NoiseTasks(), verbose=False)
    for kind in ("loss", "acc"):
        assert values[f"val/{kind}/dataloader_idx_0"] == values[f"val/{kind}"] == pytest.approx(first[f"val/{kind}"])
        assert values[f"val/{kind}/dataloader_idx_1"] == pytest.approx(second[f"test/{kind}"])
    found = run.test(module, datamodule=Several(), verbose=False)[0]
    assert found["test/acc/dataloader_idx_0"] == found["test/acc"] == pytest.approx(second["test/acc"])
    assert found["test/acc/dataloader_idx_1"] == pytest.approx(first["val/acc"])
    assert [module.test_results(index)["acc", 1].tasks for index in range(2)] == [10, 6]
    with (tmp_path / "test_tasks_1.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 6
    run.predict(module, datamodule=Several())
    with (tmp_path / "predictions.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 16 * 9


SETTINGS: dict[str, dict[str, Any]] = {
    "double": {"precision": "64-true"},
    "half": {"precision": "bf16-true"},
    "mixed": {"precision": "bf16-mixed"},
    "accumulate": {"accumulate_grad_batches": 3},
    "limits": {"limit_train_batches": 2, "limit_val_batches": 1, "limit_test_batches": 1},
    "shares": {"limit_train_batches": 0.5, "limit_val_batches": 0.6, "limit_test_batches": 0.6},
    "development": {"fast_dev_run": 2},
    "no_inference_mode": {"inference_mode": False},
    "clip": {"gradient_clip_val": 0.5},
    "averaged": {"callbacks": [EMAWeightAveraging()]},
    "swa": {"callbacks": [StochasticWeightAveraging(swa_lrs=1e-2)], "max_epochs": 3},
    "anomaly": {"detect_anomaly": True},
    "deterministic": {"deterministic": True},
    "reload": {"reload_dataloaders_every_n_epochs": 1, "max_epochs": 2, "limit_val_batches": 0},
    "no_sampler": {"use_distributed_sampler": False},
    "schedule": {"callbacks": [GradientAccumulationScheduler({0: 2})]},
}


@pytest.fixture(autouse=True)
def _algorithms() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", SETTINGS)
def test_trainers_as_users_set_them(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)  # in bf16 a small step of the loss's scale is rounded away
    module = MAML(
        TinyConv(),
        inner_steps=1,
        inner_lr=0.1,
        loss=LearnedLoss(),
        outer_optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
    )
    before = module.loss.scale.item()
    run, data = trainer(tmp_path, **SETTINGS[name]), NoiseTasks(train_tasks=8)
    run.fit(module, datamodule=data)
    assert module.loss.scale.item() != before
    (found,) = run.test(module, datamodule=data, verbose=False)
    predictions = run.predict(module, datamodule=data)
    tasks = data.draw(0, "test", [0])
    adapted = module.adapt(Batch(tasks.support.x[0], tasks.support.y[0]))
    assert predictions is not None
    torch.testing.assert_close(
        adapted.probabilities(tasks.query.x[0]).float(), predictions[0][0].float(), rtol=0.05, atol=0.02
    )
    assert 0.0 <= found["test/acc"] <= 1.0
    assert adapted(tasks.query.x[0]).dtype == next(module.backbone.parameters()).dtype


class Seen(L.Callback):
    """What was trained on."""

    def __init__(self) -> None:
        self.sums, self.tasks = list[float](), list[int]()

    def on_train_batch_start(self, trainer: object, module: object, batch: Any, index: int) -> None:
        self.sums.append(float(batch.support.x.sum()))
        self.tasks.append(len(batch.support.x))


@pytest.mark.filterwarnings("ignore:You requested to overfit but enabled")  # nothing was shuffled
def test_overfitting_sees_the_same_tasks_again(tmp_path: Path) -> None:
    seen = Seen()
    run = trainer(tmp_path, overfit_batches=1, max_epochs=3, callbacks=[seen])
    run.fit(MAML(TinyConv(), inner_steps=1, inner_lr=0.1), datamodule=NoiseTasks())
    assert len(seen.sums) == 3
    assert len(set(seen.sums)) == 1


def test_the_number_of_tasks_can_be_searched_for(tmp_path: Path) -> None:
    seen, data = Seen(), NoiseTasks(train_tasks=16)
    finder = BatchSizeFinder(mode="power", max_trials=3, steps_per_trial=1, batch_arg_name="tasks_per_batch")
    trainer(tmp_path, callbacks=[finder, seen]).fit(MAML(TinyConv(), inner_steps=1, inner_lr=0.1), datamodule=data)
    assert data.tasks_per_batch == 8
    assert set(seen.tasks) == {8}


def test_a_bare_trainer_logs_nothing(tmp_path: Path) -> None:
    module = MAML(TinyConv(), inner_steps=1, inner_lr=0.1)
    before = module.backbone.head.weight.detach().clone()
    run = L.Trainer(barebones=True, max_epochs=1, accelerator="cpu", default_root_dir=tmp_path)
    run.fit(module, datamodule=NoiseTasks())
    run.test(module, datamodule=NoiseTasks(), verbose=False)
    assert not torch.equal(module.backbone.head.weight, before)
    assert module.test_results()["acc", 1].tasks == 10


def test_autocast_to_float16_is_refused_wherever_the_step_is_called_from() -> None:
    module, tasks = MAML(TinyConv(), inner_steps=1), NoiseTasks().draw(0, "train", [0])
    with torch.autocast("cpu", torch.float16), pytest.raises(ConfigError, match="autocast to float16.*use bfloat16"):
        module.training_step(tasks, 0)


def test_what_a_module_is_put_into_does_not_decide_where_it_logs(tmp_path: Path) -> None:
    """A plain module as a holder, in a loop of the user's own."""
    holder = nn.ModuleDict({"maml": MAML(TinyConv(), inner_steps=1, inner_lr=0.1)})
    optimizer = torch.optim.SGD(holder.parameters(), lr=0.1)
    tasks = NoiseTasks().draw(0, "train", [0, 1])
    losses = []
    for step in range(5):
        optimizer.zero_grad()
        loss = holder["maml"].training_step(tasks, step)  # type: ignore[operator]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
