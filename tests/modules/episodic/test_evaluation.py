"""Evaluation under a stock Trainer: it works in inference mode, and it changes nothing."""

from __future__ import annotations

import copy
import csv
import gc
import logging
import math
import statistics
from collections.abc import Callable
from pathlib import Path

import lightning as L
import pytest
import torch
from torch import nn

from metalearn import ANIL, MAML, MLP, Batch, DivergenceError, Episode, MetaModule, Pooled
from metalearn.datamodules import SinusoidDataModule
from metalearn.datamodules.episodes.base import EpisodicDataModule
from metalearn.modules.callbacks.tables import TaskTable
from tests.networks import TinyConv, noise_episode


class NoiseTasks(EpisodicDataModule):
    """Classification of noise around class centres."""

    def __init__(self, test_tasks: int = 10, tasks_per_batch: int = 4, train_tasks: int = 32) -> None:
        super().__init__(tasks_per_batch, train_tasks, 6, test_tasks, 0, 0)

    def draw(self, seed: int, split: str, indices: list[int]) -> Episode:
        episodes = [noise_episode(1, seed=1000 * len(split) + index, dtype=torch.float32) for index in indices]
        return Episode(
            *(Batch(*(torch.cat(part) for part in zip(*roles, strict=True))) for roles in zip(*episodes, strict=True))
        )


def trainer(folder: Path, **arguments: object) -> L.Trainer:
    settings = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu",
                "enable_checkpointing": False, "default_root_dir": folder, "max_epochs": 1}  # fmt: skip
    return L.Trainer(**{**settings, **arguments})  # type: ignore[arg-type]


# The algorithms themselves are in tests/algorithms.py; these are options of evaluation.
MODULES: dict[str, Callable[[], tuple[MetaModule, EpisodicDataModule]]] = {
    "maml_vectorized": lambda: (MAML(TinyConv(), inner_steps=2, execution="vectorized"), NoiseTasks()),
    "maml_support": lambda: (MAML(TinyConv(), inner_steps=2, norm="support"), NoiseTasks()),
    "maml_running": lambda: (MAML(TinyConv(), inner_steps=2, norm="running"), NoiseTasks()),
    "maml_learned": lambda: (MAML(TinyConv(), inner_steps=2, inner_lr="learn"), NoiseTasks()),
    "sinusoid": lambda: (
        MAML(MLP(), inner_lr=0.01, loss="mse"),
        SinusoidDataModule(train_tasks=50, val_tasks=10, test_tasks=30),
    ),
    "pooled": lambda: (
        Pooled(MLP(), inner_lr=0.01, loss="mse"),
        SinusoidDataModule(train_tasks=50, val_tasks=10, test_tasks=30),
    ),
}


@pytest.mark.parametrize("name", MODULES)
def test_a_stock_trainer_fits_validates_tests_and_predicts(name: str, tmp_path: Path) -> None:
    module, data = MODULES[name]()
    run = trainer(tmp_path)
    run.fit(module, datamodule=data)
    before = copy.deepcopy(module.state_dict())
    modes = [layer.training for layer in module.backbone.modules()]
    rng = torch.get_rng_state()
    (found,) = run.test(module, datamodule=data, verbose=False)
    run.validate(module, datamodule=data, verbose=False)
    predictions = run.predict(module, datamodule=data)
    key = "test/acc" if module.classifies else "test/loss"
    assert math.isfinite(found[key])
    assert math.isfinite(found[f"{key}_ci95"])
    assert predictions is not None
    assert torch.equal(torch.get_rng_state(), rng)
    after = module.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert [layer.training for layer in module.backbone.modules()] == modes


@pytest.mark.parametrize("mode", ["eval", "no_grad", "inference_mode", "train"])
def test_adapt_works_in_every_mode_and_touches_nothing(mode: str) -> None:
    net = nn.Sequential(TinyConv(), nn.Dropout(0.5))
    module = MAML(net, inner_steps=3)
    module.train(mode == "train")
    episode = noise_episode(1, dtype=torch.float32)
    before, rng = copy.deepcopy(module.state_dict()), torch.get_rng_state()
    context = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}.get(mode, torch.enable_grad)
    with context():
        support = Batch(episode.support.x[0].clone(), episode.support.y[0].clone())
        logits = module.adapt(support)(episode.query.x[0])
    assert logits.shape == (9, 3)
    assert not logits.requires_grad
    assert module.training == (mode == "train")
    assert torch.equal(torch.get_rng_state(), rng)
    after = module.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    expected = MAML(copy.deepcopy(net), inner_steps=3).eval().adapt(Batch(episode.support.x[0], episode.support.y[0]))
    torch.testing.assert_close(logits.clone(), expected(episode.query.x[0]))


def test_the_printed_interval_is_that_of_the_table(tmp_path: Path) -> None:
    module, table = MAML(TinyConv(), inner_steps=2), TaskTable()
    (found,) = trainer(tmp_path, callbacks=[table]).test(module, datamodule=NoiseTasks(test_tasks=11), verbose=False)
    assert table.path is not None
    with table.path.open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["task"]) for row in rows] == list(range(11))
    values = [float(row["acc_step_2"]) for row in rows]
    assert found["test/acc"] == pytest.approx(statistics.fmean(values), rel=1e-6)
    assert found["test/acc_ci95"] == pytest.approx(1.96 * statistics.stdev(values) / math.sqrt(11), rel=1e-6)


def test_memory_does_not_grow_with_the_number_of_test_tasks(tmp_path: Path) -> None:
    """Resident memory after 600 tasks is within 5 % of that after 50."""
    module = MAML(TinyConv(), inner_steps=2)
    seen: dict[int, int] = {}

    class Watch(L.Callback):
        def on_test_batch_end(
            self, trainer: object, module: object, outputs: object, batch: object, index: int
        ) -> None:
            if index not in (4, 59):
                return
            gc.collect()
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            seen[(index + 1) * 10] = pages

    data = NoiseTasks(test_tasks=600, tasks_per_batch=10)
    trainer(tmp_path, callbacks=[Watch()]).test(module, datamodule=data, verbose=False)
    assert seen[600] <= 1.05 * seen[50]


def test_a_diverged_task_is_named_instead_of_scored(tmp_path: Path) -> None:
    module = MAML(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), inner_steps=3, inner_lr=3e38)
    with pytest.raises(DivergenceError, match=r"outputs of task 0 are not finite.*smaller inner_lr"):
        trainer(tmp_path).test(module, datamodule=NoiseTasks(), verbose=False)


@pytest.mark.parametrize("rate", [1e20, float("1e38")])
def test_a_diverging_run_stops_with_the_step(rate: float, tmp_path: Path) -> None:
    module = MAML(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), inner_steps=3, inner_lr=rate)
    with pytest.raises(DivergenceError, match=r"at step 0, .*smaller inner_lr"):
        trainer(tmp_path, num_sanity_val_steps=0).fit(module, datamodule=NoiseTasks())


def test_a_bad_gradient_stops_before_it_reaches_the_weights(tmp_path: Path) -> None:
    """The square root has an infinite slope at 0: the loss is finite, its gradient is not."""

    class Rooted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.zeros(()))
            self.head = nn.Linear(64, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(x.flatten(1) + self.scale.abs().sqrt())

    module = ANIL(Rooted(), inner_steps=1, inner_lr=0.1)
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(DivergenceError, match="the meta-gradient is nan at step 0"):
        trainer(tmp_path, num_sanity_val_steps=0).fit(module, datamodule=NoiseTasks())
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


@pytest.mark.parametrize(("steps", "said"), [(None, False), (2, False), (3, True)])
def test_evaluation_beyond_the_kept_statistics_is_said(
    steps: int | None, said: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module = MAML(TinyConv(), inner_steps=2, eval_inner_steps=steps, norm="per_step")
    with caplog.at_level(logging.INFO):
        trainer(tmp_path, max_steps=1).fit(module, NoiseTasks())
    (line,) = [line for line in caplog.messages if "normalisation policy" in line]
    assert line.endswith("'per_step'") is not said
    assert ("end at 2 inner steps, but evaluation takes 3; use eval_inner_steps=2" in line) is said
