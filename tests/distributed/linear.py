"""Hyper-cleaning and regularisation tuning on two gloo processes, started by the tests: writes where each rank ended."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch

from metalearn import HyperCleaning, RegularizationTuning
from metalearn.datamodules import MNISTCleaningDataModule, NewsgroupsDataModule
from metalearn.datamodules.levels.base import BilevelDataModule
from metalearn.modules.problem_based.linear_models import LinearBilevel

STEPS = 4
INNER = 3
ITERATIONS = 4
SIZES: dict[str, Any] = {"train": 60, "val": 30, "test": 30, "corruption": 0.4, "batch_size": 20, "steps_per_epoch": 3}
COMMON: dict[str, Any] = {"inner_steps": INNER, "linear_steps": ITERATIONS}


def cases(mnist: str, news: str) -> dict[str, tuple[LinearBilevel, BilevelDataModule]]:
    """A module and its data by name: batches of each term, with ``y`` and ``v`` carried on; MRBO; all examples at once."""
    drawn = MNISTCleaningDataModule(mnist, draws={"inner": INNER}, **SIZES)
    single = MNISTCleaningDataModule(mnist, draws={"hessian": ITERATIONS}, **SIZES)
    return {
        "cleaning": (HyperCleaning(estimator="aid_fp", outer_lr=10.0, **COMMON), drawn),
        "mrbo": (HyperCleaning(algorithm="mrbo", estimator="stoc_bio", outer_lr=10.0, **COMMON), single),
        "regularization": (
            RegularizationTuning(initial_log_penalty=-3.0, outer_lr=5.0, inner_lr=1.0, **COMMON),
            NewsgroupsDataModule(news, steps_per_epoch=3),
        ),
    }


def main(folder: Path, devices: int) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name, (module, data) in cases(str(folder / "mnist"), str(folder / "news")).items():
        trainer = L.Trainer(
            accelerator="cpu", devices=devices, strategy="ddp", max_steps=STEPS, logger=False, default_root_dir=folder,
            enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, limit_val_batches=0,
        )  # fmt: skip
        trainer.fit(module, datamodule=data)
        state = module.state
        report = {key: state[key].tolist() for key in ("x", "y", "u", "v") if key in state}
        report |= {"counts": module.counts.as_dict(), "loss": float(trainer.callback_metrics["train/loss"])}
        (folder / f"{name}{trainer.global_rank}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
