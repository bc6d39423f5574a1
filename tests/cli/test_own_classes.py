"""Modules, networks and data of a user's own on the command line, and what the summary says of such a run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import nn
from torch.utils.data import DataLoader

from metalearn import Batch, Episode
from metalearn.cli import main
from metalearn.reports.outcome import Facts, Picture, RunRecord, Stage

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


class Counts(L.LightningModule):
    """Counts its steps, and is best after the second; nothing of ours is among its bases."""

    checkpoint_monitor = ("val/acc", "max")

    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.Parameter(torch.zeros(()))
        self.tested = -1.0

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return -self.steps

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/acc", 1.0 - (self.steps - 2.0).abs() / 10.0)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.tested = float(self.steps)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1.0)

    def summary_facts(self, stage: Stage) -> Facts:
        return (
            [("tested at", f"{self.tested:g}")]
            if stage == "test"
            else [("cost", f"{float(self.steps.detach()):g} steps")]
        )

    def pictures(self, run: RunRecord) -> list[Picture]:
        def draw(path: Path) -> Path:
            path.write_text(f"{run.name} {run.tested} {len(run.rows)}")
            return path

        return [Picture("picture.txt", draw)]


class Averaged(WeightAveraging):
    """The mean of all states."""

    def __init__(self) -> None:
        super().__init__()


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


@pytest.mark.parametrize("averages", [False, True])
def test_a_module_of_a_users_own_joins_the_summary(averages: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """Its best checkpoint is tested; with averaged weights it holds those, here the mean of the first steps."""
    run = ["--trainer.max_steps", "6", "--trainer.val_check_interval", "1", *RUN[2:]]
    options = ["--trainer.callbacks", f"{HERE}.Averaged"] if averages else []
    main(["fit", "--model", f"{HERE}.Counts", "--data", f"{HERE}.PointsToTest", "--run_name", "own", *run, *options])
    summary = capsys.readouterr().out
    folder = Path("runs/own/version_0")
    state = torch.load(folder / "checkpoints/best.ckpt", weights_only=True)["state_dict"]
    assert f"tested at {float(state['steps']):g} " in " ".join(summary.split())
    assert averages or float(state["steps"]) == 2.0
    assert averages or "cost 6 steps" in " ".join(summary.split())  # of all training, not until the best checkpoint
    assert f"checkpoint {folder}/checkpoints/best.ckpt" in " ".join(summary.split())
    assert (folder / "picture.txt").read_text().startswith("own True")
    main(shlex.split(re.search(r"Evaluate it again:\n +python -m metalearn (.+)", summary)[1]))  # type: ignore[index]
    assert "test: own" in (again := capsys.readouterr().out)
    assert f"tested at {float(state['steps']):g} " in " ".join(again.split())


def test_a_function_is_no_network(capsys: pytest.CaptureFixture[str]) -> None:
    """And no class of torch's that is called alike is meant."""
    with pytest.raises(SystemExit):
        main(["fit", "--model", "MAML", "--model.backbone", f"{HERE}.episodes", "--data", f"{HERE}.Points", *RUN])
    said = capsys.readouterr().err
    assert f"model.backbone is '{HERE}.episodes' (it is no Module), but it must be a Module; use one of Conv4" in said


class OffersNothing(Counts):
    """Its methods fail, or give what cannot be shown."""

    def summary_facts(self, stage: Stage) -> Facts:
        if stage == "test":
            raise RuntimeError("no\nfacts")
        return {"cost": "nothing"}  # type: ignore[return-value]

    def pictures(self, run: RunRecord) -> list[Picture]:
        def draw(path: Path) -> Path:
            path.write_text("drawn")
            return path

        pictures: list[Any] = [
            "plot.png",
            Picture("metrics.csv", draw),
            Picture("../up.png", draw),
            Picture("a.png", draw),
        ]
        return [*pictures, Picture("b.png", lambda path: True)]  # type: ignore[arg-type, return-value]


def test_what_a_module_offers_costs_no_summary(capsys: pytest.CaptureFixture[str]) -> None:
    run = ["--trainer.max_steps", "2", "--trainer.val_check_interval", "1", *RUN[2:]]
    main(["fit", "--model", f"{HERE}.OffersNothing", "--data", f"{HERE}.PointsToTest", "--run_name", "own", *run])
    summary = " ".join(capsys.readouterr().out.split())
    folder = Path("runs/own/version_0")
    for line in (
        "no facts summary_facts('test') gave none (RuntimeError: no facts)",
        "no facts summary_facts('fit') gave none (TypeError: it returned dict, but it must return a list of pairs (name, value))",
        f"checkpoint {folder}/checkpoints/best.ckpt",
        f"pictures {folder}/a.png",
        "'plot.png' could not be drawn (TypeError: it must be a Picture(name, draw))",
        "metrics.csv could not be drawn (ValueError: its name must be that of a file of its own",
        "../up.png could not be drawn (ValueError: its name must be that of a file of its own",
        "b.png could not be drawn (TypeError: draw returned True",
    ):
        assert line in summary, line
    assert (folder / "metrics.csv").read_text() != "drawn"
    assert not Path("runs/own/up.png").exists()
