"""A long run under a stock trainer: as many outer steps as a time limit allows, and on from its checkpoint the next time."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader
from works import Work, noise

from metalearn import MAML, Conv4, DivergenceError
from metalearn.datamodules import GlyphsDataModule, OmniglotDataModule

__all__ = ["check_guard", "make_data", "train"]


class Until(L.Callback):
    """Ends training at a time, and tells how fast it goes."""

    def __init__(self, deadline: float, every: float = 15.0) -> None:
        self.deadline, self.every = deadline, every
        self.first = 0
        self.begun = self.told = math.nan

    def on_train_start(self, trainer: L.Trainer, *_: Any) -> None:
        self.first, self.begun = trainer.global_step, math.nan

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        now = time.monotonic()
        if math.isnan(self.begun) and trainer.global_step - self.first >= 5:  # the first steps find out how to run
            self.begun = self.told = now
            self.first = trainer.global_step
        elif now - self.told > self.every:
            self.told = now
            print(f"step {trainer.global_step}: {self.rate(trainer):.1f} steps a second", flush=True)
        trainer.should_stop = trainer.should_stop or now > self.deadline

    def rate(self, trainer: L.Trainer) -> float:
        """Steps a second since the first ones."""
        spent = time.monotonic() - self.begun
        return (trainer.global_step - self.first) / spent if spent > 0 else math.nan


def make_data(root: str | None, toy: bool, tasks: int, workers: int) -> Any:
    """5-way 1-shot tasks of Omniglot, or of drawn glyphs for a trial; ``None`` without a folder."""
    more: dict[str, Any] = {"ways": 5, "shots": 1, "queries": 5, "tasks_per_batch": tasks, "num_workers": workers}
    if toy:
        return GlyphsDataModule(**more, train_tasks=2 * tasks, val_tasks=2, test_tasks=4)
    if root is None:
        return None
    return OmniglotDataModule(root, download=False, **more, train_tasks=tasks * 2000, val_tasks=tasks)


def train(
    data: Any, folder: Path, iterations: int, deadline: float, device: str, hidden: int, compile: Any
) -> dict[str, Any]:
    """Train from where the folder's checkpoint left off, then test.

    Args:
        data: the tasks.
        folder: of the checkpoint ``last.ckpt``.
        iterations: outer steps in all.
        deadline: when training ends, on the clock of ``time.monotonic``.
        device: ``"cuda"`` or ``"cpu"``.
        hidden: filters of the network.
        compile: how the step is prepared.
    """
    L.seed_everything(0, verbose=False)
    module = MAML(
        Conv4(5, 1, hidden, 28, zero_head=True), inner_steps=1, eval_inner_steps=3, inner_lr="learn", initial_inner_lr=0.4,
        outer_optimizer=partial(torch.optim.Adam, lr=3e-3, fused=device == "cuda"), outer_scheduler="cosine", compile=compile,
    )  # fmt: skip
    until = Until(deadline)
    keep = ModelCheckpoint(folder, filename="kept", save_last=True, save_top_k=0, every_n_train_steps=2000)
    trainer = L.Trainer(
        accelerator="gpu" if device == "cuda" else "cpu", devices=1, max_steps=iterations, max_epochs=-1, logger=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, limit_val_batches=0,
        callbacks=[until, keep], default_root_dir=folder,
    )  # fmt: skip
    last = folder / "last.ckpt"
    begun = time.monotonic()
    trainer.fit(module, datamodule=data, ckpt_path=str(last) if last.is_file() else None)
    seconds = time.monotonic() - begun
    steps, rate = trainer.global_step, until.rate(trainer)
    trainer.save_checkpoint(last)
    (scores,) = trainer.test(module, datamodule=data, verbose=False)
    return {
        "steps": steps, "of": iterations, "seconds": seconds, "steps a second": rate,
        "accuracy": scores["test/acc"], "interval": scores["test/acc_ci95"],
    }  # fmt: skip


def check_guard(work: Work, device: str, folder: Path) -> str:
    """Whether a spoiled third step stops a run, with the weights as they were after the second."""
    episodes = [noise(work) for _ in range(4)]
    episodes = [type(one)(*(type(role)(role.x[:2].float(), role.y[:2]) for role in one)) for one in episodes]
    episodes[2].query.x[1, 0] = math.nan
    weights: list[Mapping[str, torch.Tensor]] = []

    class Keep(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
            weights.append({name: value.detach().clone() for name, value in module.named_parameters()})

    module = MAML(Conv4(5, work.channels, work.hidden, work.size), inner_steps=1, inner_lr=0.1)
    trainer = L.Trainer(
        accelerator="gpu" if device == "cuda" else "cpu", devices=1, max_steps=4, logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, limit_val_batches=0, callbacks=[Keep()], default_root_dir=folder,
    )  # fmt: skip
    loader: Any = DataLoader(episodes, batch_size=None)  # type: ignore[arg-type]
    try:
        trainer.fit(module, loader)
    except DivergenceError as error:
        kept = all(torch.equal(value, weights[1][name].to(value)) for name, value in module.named_parameters())
        return f"weights kept: {kept}; {error}"
    return "not stopped"
