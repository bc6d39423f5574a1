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

    What it has measured goes into checkpoints, so that a training in parts knows the whole.

    Attributes:
        seconds: of the whole fit, validation included.
        cpu: of these, seconds that the cores of this process have worked, those of all its threads added up.
        training: of the training batches alone.
        earlier: ``seconds`` and ``cpu`` of the parts before this one, of which this one is the continuation.
        batches: of training, on this rank.
        tasks: the tasks that were trained on, over all ranks; 0 where a batch is no batch of tasks.
    """

    def __init__(self) -> None:
        self.seconds = self.cpu = self.training = 0.0
        self.tasks = self.batches = 0
        self.earlier = {"seconds": 0.0, "cpu": 0.0}
        self._begun = self._begun_cpu = self._batch = 0.0

    def state_dict(self) -> dict[str, float]:
        self._read()
        return {key: value + getattr(self, key) for key, value in self.earlier.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.earlier = {key: float(state_dict.get(key, 0.0)) for key in self.earlier}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begun, self._begun_cpu = time.perf_counter(), time.process_time()

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
        self._read()
        self._begun = 0.0  # what is saved later counts no seconds more

    def _read(self) -> None:
        if self._begun:
            self.seconds, self.cpu = time.perf_counter() - self._begun, time.process_time() - self._begun_cpu
