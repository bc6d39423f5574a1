"""Progress bars that count outer steps, since runs end after a number of steps, not of epochs."""

from __future__ import annotations

from typing import Any

import lightning as L
import rich
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar, TQDMProgressBar

__all__ = ["PlainStepProgressBar", "ProgressLines", "StepProgressBar", "show_progress"]


class _Steps(ProgressBar):
    """Shows the step, of how many where that is known, and not the number of the run's folder."""

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return {"step": _step(trainer), **metrics} if trainer.state.fn == "fit" else metrics


class StepProgressBar(_Steps, RichProgressBar):
    """Lightning's rich bar, with the number of outer steps."""

    def _get_train_description(self, current_epoch: int) -> str:
        """Without the last epoch where there is none: Lightning writes -2 for it."""
        most = self.trainer.max_epochs
        text = f"Epoch {current_epoch}" if most in (None, -1) else f"Epoch {current_epoch}/{most - 1}"
        return text.ljust(len(self.validation_description))


class PlainStepProgressBar(_Steps, TQDMProgressBar):
    """Lightning's plain bar, with the number of outer steps."""


class ProgressLines(L.Callback):
    """A line after every validation in training and at its end, for files: a bar that paints itself anew would fill them."""

    def __init__(self) -> None:
        self._last_line = ""

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._print(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._print(trainer)

    def _print(self, trainer: L.Trainer) -> None:
        numbers = [f"{name} {float(value):.4g}" for name, value in sorted(trainer.progress_bar_metrics.items())]
        line = f"step {_step(trainer)}: {', '.join(numbers)}"
        if trainer.is_global_zero and numbers and line != self._last_line:
            print(line, flush=True)
        self._last_line = line


def show_progress(callbacks: list[L.Callback]) -> list[L.Callback]:
    """The callbacks of a Trainer that the command line has built, with bars that count outer steps.

    Where the output is no terminal, lines take the place of bars.
    """
    console = rich.get_console()
    kinds: dict[type, type] = {RichProgressBar: StepProgressBar, TQDMProgressBar: PlainStepProgressBar}
    shown: list[L.Callback] = []
    for callback in callbacks:
        if type(callback) in kinds and not (console.is_terminal or console.is_jupyter):
            shown.append(ProgressLines())
            continue
        callback.__class__ = kinds.get(type(callback), type(callback))
        shown.append(callback)
    return shown


def _step(trainer: L.Trainer) -> str:
    most = int(trainer.max_steps)
    return str(trainer.global_step) if most < 0 else f"{trainer.global_step}/{most}"
