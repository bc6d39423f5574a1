"""The arguments of a run, whole, for its loggers: what ``hparams.yaml`` and an experiment tracker show."""

from __future__ import annotations

from typing import Any

import lightning as L

__all__ = ["ArgumentsLog"]


class ArgumentsLog(L.Callback):
    """Logs all arguments of module and data module, once; Lightning logs those that a module has saved for its checkpoints."""

    def __init__(self) -> None:
        self._arguments: dict[str, Any] = {}
        self._is_done = False

    def choose(self, options: dict[str, Any]) -> None:
        """Take the arguments out of all options of a command."""
        self._arguments = {name: options[name] for name in ("model", "data", "seed_everything") if name in options}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self._is_done:
            return
        self._is_done = True
        data: Any = getattr(trainer, "datamodule", None)
        saved = {**getattr(data, "hparams_initial", {}), **pl_module.hparams_initial}
        values = {name: value for name, value in saved.items() if name != "_class_path"}  # LightningCLI's own
        for logger in trainer.loggers:
            logger.log_hyperparams({**values, **self._arguments})
            if hasattr(logger, "log_graph"):
                logger.log_graph(pl_module)
            logger.save()
