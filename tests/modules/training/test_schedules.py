"""Outer optimisers and schedules of users: they watch what they were told, as often as there is something new."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import LearningRateFinder
from lightning.pytorch.cli import ReduceLROnPlateau
from torch import nn
from torch.optim import lr_scheduler

from metalearn import MAML, ConfigError
from tests.modules.episodic.test_evaluation import NoiseTasks, trainer


def module(scheduler: Any, **arguments: Any) -> MAML:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    settings = {"inner_steps": 1, "outer_optimizer": lambda params: torch.optim.SGD(params, lr=1.0)}
    return MAML(net, outer_scheduler=scheduler, **{**settings, **arguments})


class Kept(L.Callback):
    """What a schedule watched, and the learning rate after each validation and outer step."""

    def __init__(self, name: str) -> None:
        self.name, self.values, self.steps, self.rates = name, list[float](), list[int](), list[float]()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            self.values.append(float(trainer.callback_metrics[self.name]))
            self.steps.append(trainer.global_step)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


def reduced(values: list[float], mode: str) -> list[float]:
    """The learning rate after each value, with patience 0 and factor 0.1, written out."""
    rate, best, rates = 1.0, None, []
    for value in values:
        if best is None or (value > best * (1 + 1e-4) if mode == "max" else value < best * (1 - 1e-4)):
            best = value
        else:
            rate *= 0.1
        rates.append(rate)
    return rates


@pytest.mark.parametrize(
    ("make", "monitor", "mode"),
    [
        (lambda o: ReduceLROnPlateau(o, monitor="val/acc", mode="max", patience=0), "val/acc", "max"),
        (lambda o: ReduceLROnPlateau(o, monitor="val/loss", patience=0), "val/loss", "min"),
        (lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0), "val/loss", "min"),
    ],
)
@pytest.mark.parametrize(
    "when", [{}, {"check_val_every_n_epoch": 2}, {"val_check_interval": 0.5}, {"val_check_interval": 3}]
)
def test_a_plateau_is_looked_for_after_every_validation_and_nowhere_else(
    make: Callable[[Any], Any], monitor: str, mode: str, when: dict[str, Any], tmp_path: Path
) -> None:
    kept = Kept(monitor)
    run = trainer(tmp_path, max_epochs=4, callbacks=[kept], **when)
    run.fit(module(make), datamodule=NoiseTasks(train_tasks=16))
    assert run.lr_scheduler_configs[0].monitor == monitor
    assert len(kept.values) >= 2
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(reduced(kept.values, mode)[-1])
    assert run.lr_scheduler_configs[0].scheduler.last_epoch == len(kept.values)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda o: lr_scheduler.StepLR(o, 2, gamma=0.5), [1.0, 0.5, 0.5, 0.25]),
        (lambda o: {"scheduler": lr_scheduler.StepLR(o, 1, gamma=0.5), "interval": "epoch"}, [1.0, 1.0, 1.0, 0.5]),
        (lambda o: lr_scheduler.SequentialLR(
            o, [lr_scheduler.ConstantLR(o, 0.5, 10), lr_scheduler.ConstantLR(o, 0.25, 10)], [2]
        ), [0.5, 0.25, 0.25, 0.25]),
        (lambda o: lr_scheduler.ChainedScheduler([lr_scheduler.ConstantLR(o, 0.5, 9), lr_scheduler.ExponentialLR(o, 0.5)]),
         [0.25, 0.125, 0.0625, 0.03125]),
        (lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2), [0.5, 1.0, 0.5, 1.0]),
        ("cosine", [0.8535533905932737, 0.5, 0.14644660940672627, 0.0]),
    ],
)  # fmt: skip
def test_schedules_count_outer_steps(make: Any, expected: list[float], tmp_path: Path) -> None:
    kept = Kept("val/loss")
    trainer(tmp_path, callbacks=[kept], limit_val_batches=0).fit(module(make), datamodule=NoiseTasks(train_tasks=16))
    assert kept.rates == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"outer_scheduler": "linear"}, "outer_scheduler is 'linear', .*'cosine'"),
        ({"outer_scheduler": 3}, "outer_scheduler is a int"),
        ({"outer_scheduler": lambda o: None}, "outer_scheduler gives a NoneType"),
        ({"outer_scheduler": lambda o: [lr_scheduler.StepLR(o, 1)]}, "outer_scheduler gives a list.*SequentialLR"),
        ({"outer_scheduler": lambda o: {"scheduler": lr_scheduler.StepLR(o, 1), "every": 2}}, "gives a dict of scheduler, every"),
        ({"outer_scheduler": lambda o: lr_scheduler.StepLR(torch.optim.SGD([torch.zeros(1)], lr=1.0), 1)}, "another optimiser"),
        ({"outer_scheduler": lambda o: lr_scheduler.ReduceLROnPlateau(o, mode="max")}, "mode='max' that does not say"),
        ({"outer_optimizer": torch.optim.SGD([torch.zeros(1)], lr=1.0)}, "outer_optimizer is a SGD"),
        ({"outer_optimizer": lambda p: [torch.optim.SGD(p, lr=1.0)]}, "outer_optimizer gives a list"),
    ],
)  # fmt: skip
def test_what_is_no_schedule_is_one_line(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    given = {key.replace("outer_scheduler", "scheduler"): value for key, value in arguments.items()}

    def fit() -> None:
        trainer(tmp_path).fit(module(**{"scheduler": None, **given}), datamodule=NoiseTasks(train_tasks=4))

    with pytest.raises(ConfigError, match=message) as caught:
        fit()
    assert "\n" not in str(caught.value)


def test_a_monitor_that_is_not_logged_is_told_with_those_that_are(tmp_path: Path) -> None:
    made = module(lambda o: ReduceLROnPlateau(o, monitor="val/accuracy", mode="max"))
    with pytest.raises(ConfigError, match="watches 'val/accuracy', but there are .*val/acc, val/loss"):
        trainer(tmp_path, val_check_interval=2).fit(made, datamodule=NoiseTasks(train_tasks=16))


def test_a_learning_rate_is_found_and_used(tmp_path: Path) -> None:
    made = module(None)
    run = trainer(tmp_path, limit_val_batches=0, callbacks=[LearningRateFinder(num_training_steps=20)])
    run.fit(made, datamodule=NoiseTasks(train_tasks=100))
    assert made.learning_rate is not None
    assert run.optimizers[0].param_groups[0]["lr"] == made.learning_rate
    again = trainer(tmp_path, limit_val_batches=0, max_steps=1)
    again.fit(made, datamodule=NoiseTasks(train_tasks=8))
    assert again.optimizers[0].param_groups[0]["lr"] == made.learning_rate
