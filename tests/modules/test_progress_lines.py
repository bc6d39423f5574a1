"""The lines of a run whose output is a file."""

from __future__ import annotations

import itertools
import re
import time
from typing import Any

import lightning as L
import pytest
import torch

from metalearn.modules.callbacks.progress import ProgressLines, TimeLeft, find_last_step


class Counts(L.LightningModule):
    """Counts its steps."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = self.layer(batch[0]).sum()
        self.log("train/loss", 1.0, prog_bar=True)
        return loss

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.layer(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def make_trainer(**options: Any) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[ProgressLines()], **options,
    )  # fmt: skip


def make_loader() -> torch.utils.data.DataLoader:
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.zeros(6, 1)), batch_size=1)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time that passes by six seconds whenever it is asked for."""
    ticks = itertools.count(0.0, 6.0)
    monkeypatch.setattr(time, "monotonic", lambda: next(ticks))


@pytest.mark.usefixtures("slow")
def test_a_slow_training_says_its_step_and_the_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    make_trainer(max_epochs=2).fit(Counts(), make_loader())
    lines = capsys.readouterr().out.splitlines()
    assert all(re.fullmatch(r"step \d+/12, [\d:]+( s)? left: train/loss 1", line) for line in lines[:-1]), lines
    assert len(lines) > 3
    assert lines[-1] == "step 12/12: train/loss 1"


@pytest.mark.usefixtures("slow")
def test_a_slow_test_says_its_batch_and_the_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    make_trainer().test(Counts(), [make_loader(), make_loader()], verbose=False)
    lines = capsys.readouterr().out.splitlines()
    assert all(re.fullmatch(r"test: batch \d+/12, [\d:]+( s)? left", line) for line in lines), lines
    assert len(lines) > 3


def test_a_quick_training_says_its_last_step(capsys: pytest.CaptureFixture[str]) -> None:
    trainer = make_trainer(max_steps=3)
    trainer.fit(Counts(), make_loader())
    assert capsys.readouterr().out.splitlines() == ["step 3/3: train/loss 1"]
    assert find_last_step(trainer) == 3
    assert TimeLeft().format(trainer) is None
