"""Data and networks in a file of the user's own, beside which the command runs."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

FILE = """
import torch
from metalearn import Batch, Episode
from metalearn.datamodules import EpisodicDataModule


class Points(EpisodicDataModule):
    def draw(self, seed, split, indices):
        y = torch.arange(2).repeat(len(indices), 2)
        x = torch.randn(len(indices), 4, 3, generator=torch.Generator().manual_seed(seed)) + y[..., None]
        return Episode(Batch(x, y), Batch(x, y))


def make_network(outputs: int) -> torch.nn.Module:
    return torch.nn.Linear(3, outputs)
"""


def test_the_installed_command_finds_classes_and_functions_of_the_working_folder(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(textwrap.dedent(FILE))
    command = [
        str(Path(sys.executable).with_name("metalearn")), "fit", "--data", "mine.Points", "--model", "MAML",
        "--model.backbone", "mine.make_network", "--model.backbone.outputs", "2", "--trainer.max_steps", "1",
        "--trainer.accelerator", "cpu", "--trainer.limit_val_batches", "0", "--test_after_fit", "false",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("runs/*/version_0/checkpoints/last.ckpt"))) == 1
