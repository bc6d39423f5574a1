"""Modules, networks and data of a user's own on the command line, and what the summary says of such a run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from metalearn import Batch, Episode
from metalearn.cli import main

HERE = "tests.cli.test_own_classes"
RUN = ["--trainer.max_steps", "2", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false",
       "--trainer.enable_model_summary", "false"]  # fmt: skip


def episodes(count: int) -> list[Episode]:
    """Tasks of telling clouds of points apart."""
    generator = torch.Generator().manual_seed(count)

    def points(each: int) -> Batch:
        labels = torch.arange(3).repeat_interleave(each)
        return Batch(torch.randn(len(labels), 4, generator=generator) + labels[:, None], labels)

    return [Episode(points(2), points(3)) for _ in range(count)]


class Points(L.LightningDataModule):
    """Loaders of such tasks; ``tests`` may be 0 for none."""

    def __init__(self, tests: int = 4) -> None:
        super().__init__()
        self.tests = tests

    def train_dataloader(self) -> Any:
        return DataLoader(episodes(4), batch_size=2)  # type: ignore[arg-type]

    def val_dataloader(self) -> Any:
        return DataLoader(episodes(4), batch_size=2)  # type: ignore[arg-type]


class PointsToTest(Points):
    """With tasks for testing."""

    def test_dataloader(self) -> Any:
        return DataLoader(episodes(self.tests), batch_size=2)  # type: ignore[arg-type]


class Network(nn.Module):
    """Scores of vectors."""

    def __init__(self, outputs: int = 3) -> None:
        super().__init__()
        self.layer = nn.Linear(4, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def fit(data: str, *args: str) -> None:
    main(["fit", "--model", "MAML", "--model.backbone", f"{HERE}.Network", "--data", f"{HERE}.{data}", *args, *RUN])


def test_the_command_that_a_summary_names_works(capsys: pytest.CaptureFixture[str]) -> None:
    fit("PointsToTest")
    said = capsys.readouterr().out
    command = shlex.split(re.search(r"Evaluate it again:\n +python -m metalearn (.+)", said)[1])  # type: ignore[index]
    assert "--config" in command  # the checkpoint alone names classes that are not built from a file
    main(command)
    again = capsys.readouterr().out
    found = [re.findall(r"test accuracy +(.+ % . .+? )", each) for each in (said, again)]
    assert found[0] == found[1] != []
    fit("PointsToTest", "--config", "runs/custom/version_0/config.yaml")  # is called as that run is
    assert sorted(each.name for each in Path("runs/custom").iterdir()) == ["version_0", "version_1"]


def test_one_task_has_no_interval(capsys: pytest.CaptureFixture[str]) -> None:
    fit("PointsToTest", "--data.tests", "1")
    said = capsys.readouterr().out
    assert "(one task, so no interval)" in said
    assert "nan" not in said


def test_data_without_a_test_end_with_a_summary(capsys: pytest.CaptureFixture[str]) -> None:
    fit("Points")
    said = capsys.readouterr().out
    assert "none: the data has no test_dataloader" in said
    assert "runs/custom/version_0/checkpoints/best.ckpt" in said
    assert "Evaluate it" not in said


def test_a_function_is_no_network(capsys: pytest.CaptureFixture[str]) -> None:
    """And no class of torch's that is called alike is meant."""
    with pytest.raises(SystemExit):
        main(["fit", "--model", "MAML", "--model.backbone", f"{HERE}.episodes", "--data", f"{HERE}.Points", *RUN])
    said = capsys.readouterr().err
    assert f"model.backbone is '{HERE}.episodes' (it is no Module), but it must be a Module; use one of Conv4" in said
