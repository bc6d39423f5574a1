"""A training run that ends after a step when a signal asks it to: the state is saved, and all ranks end together."""

from __future__ import annotations

from typing import Any, Protocol

import lightning as L
import torch
from lightning.fabric.plugins.environments import SLURMEnvironment

from metalearn.modules.callbacks.saving import LastCheckpoint

__all__ = ["StopOnSignal"]


class SignalState(Protocol):
    """What :class:`StopOnSignal` needs of :class:`metalearn.cli.interrupts.Signals`."""

    signum: int | None
    deferred: bool

    def handle(self) -> None:
        """Handle the signals from now on."""

    def stop(self, signum: int) -> None:
        """End the run, by an exception."""


class StopOnSignal(L.Callback):
    """Looks after every batch of training, and of a validation in it, whether any rank was asked to end.

    Lightning's own handler tells other ranks by a collective call inside the handler, which they do not join, and saves nothing.

    Args:
        signals: what has been received.
        last: saves the state; ``None`` where nothing is saved.

    Attributes:
        step: where the run was stopped; ``None`` before.
    """

    def __init__(self, signals: SignalState, last: LastCheckpoint | None) -> None:
        self.signals, self.last = signals, last
        self.step: int | None = None
        self._asked = 0
        self._batches = self._common = 0

    def on_sanity_check_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._handle()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._handle()
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._stop_if_asked(trainer)
            self._batches = 0
            self._common = int(_reduce(trainer, sum(_counts(trainer.num_val_batches)), "min"))

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._handle()

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._handle()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._handle()
        self.signals.deferred = True

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._stop_if_asked(trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save here, and stop at the next hook: what is logged of this batch is logged in between."""
        if self._ask(trainer) and self.last is not None:
            self.last.save(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stop_if_asked(trainer)

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """The state was saved as the validation began. Ranks may have one batch more than others, which none asks about."""
        self._batches += 1
        if self.signals.deferred and self._batches <= self._common and self._ask(trainer):
            self._stop_if_asked(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.signals.deferred = False
        if self._ask(trainer):
            if self.last is not None:
                self.last.save(trainer)
            self._stop_if_asked(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.signals.deferred = False

    def _ask(self, trainer: L.Trainer) -> int:
        self._asked = int(_reduce(trainer, self.signals.signum or 0, "max"))
        return self._asked

    def _stop_if_asked(self, trainer: L.Trainer) -> None:
        if self._asked:
            self.step = trainer.global_step
            self.signals.stop(self._asked)

    def _handle(self) -> None:
        if not SLURMEnvironment.detect():  # there, Lightning's handler has the job queued again
            self.signals.handle()


def _reduce(trainer: L.Trainer, value: int, kind: str) -> float:
    if trainer.world_size == 1:
        return value
    number = torch.tensor(float(value), device=trainer.strategy.root_device)
    return float(trainer.strategy.reduce(number, reduce_op=kind))


def _counts(batches: Any) -> list[int]:
    return [int(count) for count in (batches if isinstance(batches, list) else [batches])]
