"""How far a run is: bars that count outer steps, since runs end after a number of steps, and lines where there is no terminal."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
import rich
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar, TQDMProgressBar

from metalearn.progress import EVERY, format_seconds

__all__ = ["PlainStepProgressBar", "ProgressLines", "StepProgressBar", "TimeLeft", "show_progress"]


class TimeLeft:
    """How long a training will take to its last step, validations included, as its steps so far have taken."""

    def __init__(self) -> None:
        self._begun = self._first = 0.0

    def begin(self, trainer: L.Trainer) -> None:
        """Take note of where the training begins."""
        self._begun, self._first = time.monotonic(), trainer.global_step

    def format(self, trainer: L.Trainer) -> str | None:
        """Such as ``"3:07"``; ``None`` where it is not known, and at the end."""
        most, done = find_last_step(trainer), trainer.global_step - self._first
        if most is None or done <= 0 or trainer.global_step >= most:
            return None
        return format_seconds((time.monotonic() - self._begun) / done * max(most - trainer.global_step, 0))


class _Steps(ProgressBar):
    """Shows the step, of how many where that is known, and the time left, and not the number of the run's folder."""

    time_left: TimeLeft | None = None

    def on_train_start(self, trainer: L.Trainer, *args: Any) -> None:
        super().on_train_start(trainer, *args)
        self.time_left = TimeLeft()
        self.time_left.begin(trainer)

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        if trainer.state.fn != "fit":
            return metrics
        left = self.time_left.format(trainer) if self.time_left is not None else None
        return {"step": format_step(trainer), **({} if left is None else {"left": left}), **metrics}


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
    """Lines for files, which a bar that paints itself anew would fill: one after every validation, and one every few seconds."""

    def __init__(self) -> None:
        self._last_line = ""
        self._last = self._begun = time.monotonic()
        self._left = TimeLeft()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begin()
        self._left.begin(trainer)

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if self._is_time():
            self._print_step(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._print_step(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begin()

    on_test_start = on_predict_start = on_validation_start

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._print_step(trainer)

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int, *loader: int
    ) -> None:
        self._print_batch(trainer, "validation", batch_idx, trainer.num_val_batches, *loader)

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int, *loader: int
    ) -> None:
        self._print_batch(trainer, "test", batch_idx, trainer.num_test_batches, *loader)

    def on_predict_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int, *loader: int
    ) -> None:
        self._print_batch(trainer, "prediction", batch_idx, trainer.num_predict_batches, *loader)

    def _begin(self) -> None:
        self._begun = self._last = time.monotonic()

    def _is_time(self) -> bool:
        return time.monotonic() - self._last >= EVERY

    def _print_batch(self, trainer: L.Trainer, what: str, index: int, counts: list[Any], loader: int = 0) -> None:
        """Say how many batches of all loaders are done; a loader of no length has no share."""
        if not self._is_time():
            return
        done, total = sum(counts[:loader]) + index + 1, sum(counts)
        left = (time.monotonic() - self._begun) / done * (total - done)
        known = f"/{total}, {format_seconds(left)} left" if total < float("inf") else ""
        self._say(trainer, f"{what}: batch {done:.0f}{known}")

    def _print_step(self, trainer: L.Trainer) -> None:
        numbers = [f"{name} {float(value):.4g}" for name, value in sorted(trainer.progress_bar_metrics.items())]
        if numbers:
            left = self._left.format(trainer)
            rest = "" if left is None else f", {left} left"
            self._say(trainer, f"step {format_step(trainer)}{rest}: {', '.join(numbers)}")

    def _say(self, trainer: L.Trainer, line: str) -> None:
        if trainer.is_global_zero and line != self._last_line:
            print(line, flush=True)
        self._last_line, self._last = line, time.monotonic()


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


def find_last_step(trainer: L.Trainer) -> int | None:
    """The outer step at which a training ends; ``None`` where nothing says it."""
    most = int(trainer.max_steps)
    if most >= 0:
        return most
    epochs, batches = trainer.max_epochs, trainer.num_training_batches
    if epochs is None or epochs < 0 or not batches < float("inf"):
        return None
    return int(epochs * -(-batches // trainer.accumulate_grad_batches))


def format_step(trainer: L.Trainer) -> str:
    """The outer step, of how many where that is known."""
    most = find_last_step(trainer)
    return str(trainer.global_step) if most is None else f"{trainer.global_step}/{most}"
