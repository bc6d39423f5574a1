"""What waits until a run really begins."""

from __future__ import annotations

from collections.abc import Callable

import lightning as L

__all__ = ["StartNotice"]


class StartNotice(L.Callback):
    """Calls a function when data and model have been found usable, and the run begins."""

    def __init__(self, begin: Callable[[], None]) -> None:
        self._begin = begin

    def on_sanity_check_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begin()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begin()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begin()

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begin()

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begin()
