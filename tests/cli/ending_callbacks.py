"""Callbacks for runs that the tests end before their time."""

from __future__ import annotations

import os
import signal
from typing import Any

import lightning as L


class SignalAt(L.Callback):
    """Sends this process a signal at some point of a run.

    Args:
        name: of the signal.
        where: ``train``, ``val`` or ``test``.
        step: the outer step at which, for ``train`` and ``val``.
        rank: which process sends it to itself.
    """

    def __init__(self, name: str, where: str = "train", step: int = 1, rank: int = 0) -> None:
        self.signum, self.where, self.step, self.rank = signal.Signals[name], where, step, rank

    def on_train_batch_start(self, trainer: L.Trainer, *rest: Any) -> None:
        if trainer.global_step == self.step - 1:  # so that this step is the last one
            self._send(trainer, "train")

    def on_validation_batch_start(self, trainer: L.Trainer, *rest: Any) -> None:
        if trainer.global_step == self.step:
            self._send(trainer, "val")

    def on_test_batch_start(self, trainer: L.Trainer, *rest: Any) -> None:
        self._send(trainer, "test")

    def _send(self, trainer: L.Trainer, where: str) -> None:
        if where == self.where and trainer.global_rank == self.rank:
            os.kill(os.getpid(), self.signum)


class BrokenTest(L.Callback):
    """A test that fails."""

    def on_test_start(self, trainer: L.Trainer, *rest: Any) -> None:
        raise RuntimeError("broken")


class NeedsPackage(L.Callback):
    """Raises what Lightning raises where an option needs a package that is not there."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        raise ModuleNotFoundError("`shapes` is not installed. HINT: try `pip install shapes`")
