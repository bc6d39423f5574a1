"""A run that is killed and resumed ends where the uninterrupted one ends, bit for bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SCRIPT = """
import json, os, signal, sys, time, warnings
from pathlib import Path
import lightning as L, torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint
from metalearn import ANIL, MAML
from metalearn.modules.episodic.base import MetaModule
from torch import nn
from tests.networks import TinyConv
from tests.distributed.run import Recorded

folder, mode, workers = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
warnings.simplefilter("ignore")
torch.set_num_threads(1)
L.seed_everything(0, verbose=False)
data = Recorded(4, 24, 4, 4, 0, workers)
data.drawn = []
seen = []

class Watch(Callback):
    def on_train_batch_start(self, trainer, module, batch, index):
        seen.append(float(batch[0][0].double().sum()))
    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        if mode == "killed" and trainer.global_step == 10:
            os.kill(os.getpid(), signal.SIGKILL)

net = nn.Sequential(TinyConv(), nn.Dropout(0.1))
module = MAML(net, inner_steps=2, inner_lr="learn", outer_scheduler="cosine", execution="sequential")
saver = ModelCheckpoint(dirpath=folder, filename="last", every_n_train_steps=3, save_top_k=1, enable_version_counter=False)
averages = [EMAWeightAveraging(decay=0.9)] if workers else []
trainer = L.Trainer(accelerator="cpu", max_epochs=3, logger=False, enable_progress_bar=False, enable_model_summary=False,
                    callbacks=[Watch(), *averages, saver], num_sanity_val_steps=0, default_root_dir=folder)
trainer.fit(module, datamodule=data, ckpt_path=str(folder / "last.ckpt") if mode == "resumed" else None)
weights = torch.cat([value.detach().flatten() for value in module.parameters()])
(folder / f"{mode}.json").write_text(json.dumps({"seen": seen, "weights": weights.tolist()}))
"""


def run(folder: Path, mode: str, workers: int) -> int:
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), mode, str(workers)], cwd=ROOT, capture_output=True, text=True, timeout=200,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == (-signal.SIGKILL if mode == "killed" else 0), done.stderr[-3000:]
    return done.returncode


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_and_resumed_equals_uninterrupted(workers: int, tmp_path: Path) -> None:
    """18 steps in epochs of 6; killed after step 10, in mid-epoch, with the last checkpoint at step 9. With two workers, with
    averaged weights too."""
    run(tmp_path / "a", "whole", workers)
    run(tmp_path / "b", "killed", workers)
    run(tmp_path / "b", "resumed", workers)
    whole = json.loads((tmp_path / "a" / "whole.json").read_text())
    resumed = json.loads((tmp_path / "b" / "resumed.json").read_text())
    assert resumed["seen"] == whole["seen"][9:]
    assert resumed["weights"] == whole["weights"]
