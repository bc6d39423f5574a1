"""How long a training takes."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
import torch

from metalearn.episode import count_tasks

__all__ = ["RunClock"]


class RunClock(L.Callback):
    """Measures training: seconds with and without validation, and tasks per second over all ranks.

    Attributes:
        seconds: of the whole fit, validation included.
        training: of the training batches alone.
        batches: of training, on this rank.
        tasks: the tasks that were trained on, over all ranks; 0 where a batch is no batch of tasks.
    """

    def __init__(self) -> None:
        self.seconds = self.training = 0.0
        self.tasks = self.batches = 0
        self._begun = self._batch = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begun = time.perf_counter()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._batch = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.current_stream().synchronize()
        self.training += time.perf_counter() - self._batch
        self.batches += 1
        self.tasks += count_tasks(batch) * trainer.world_size

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.seconds = time.perf_counter() - self._begun
