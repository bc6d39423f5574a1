"""How a command ends before its time: what it says, what it keeps, and with which exit code."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from metalearn.cli.interrupts import Interrupted, Signals
from metalearn.cli.processes import connect, is_launched_child, wait_for_children
from metalearn.cli.run_files import discard, format_continuation, format_evaluation
from metalearn.modules.callbacks.saving import BestCheckpoint, LastCheckpoint
from metalearn.modules.callbacks.stopping import StopOnSignal

__all__ = ["Ending"]

CHILDREN = 5.0
"""Seconds that other processes of an interrupted run have to end."""


@dataclass
class Ending:
    """What is known of a run when it ends.

    Attributes:
        signals: what was received.
        trainer: of the run, once there is one.
        new_folder: what it writes into, if nothing was there before.
    """

    signals: Signals = field(default_factory=Signals)
    trainer: Any = None
    new_folder: Path | None = None

    def follow(self, trainer: Any, new_folder: Path | None) -> None:
        """Take note of a run that is about to begin."""
        self.trainer, self.new_folder = trainer, new_folder
        connect(self.signals, trainer)

    def leave(self) -> int:
        """Say in one line how the run was interrupted and what goes on from there, and return the exit code."""
        stopped = Interrupted(self.signals.signum or 2)
        trainer = self.trainer
        if trainer is not None and is_launched_child(trainer):
            return 0  # the process that has started this one speaks for it, and would be killed for another code
        if trainer is None or trainer.is_global_zero:
            print(f"metalearn: {self._describe(stopped)}", file=sys.stderr, flush=True)
        self.clean()
        if trainer is not None:
            wait_for_children(trainer, CHILDREN)
        return stopped.code

    def clean(self) -> None:
        """Remove a new folder in which there is no checkpoint."""
        if self.new_folder is not None and self.trainer.is_global_zero:
            discard(self.new_folder)

    def describe_kept(self) -> str:
        """Where the last state is that was saved, for whoever reads of a failure; empty if none was."""
        last = _callback(self.trainer, LastCheckpoint)
        return (
            f"the state of step {last.step} is kept in {last.path}"
            if last and last.step and last.path.is_file()
            else ""
        )

    def _describe(self, stopped: Interrupted) -> str:
        last, stop = _callback(self.trainer, LastCheckpoint), _callback(self.trainer, StopOnSignal)
        saved = last is not None and last.step > 0 and last.path.is_file()
        if stop is not None and stop.step is not None:
            line = f"stopped by {stopped} at step {stop.step}"
            return f"{line}; go on with: {format_continuation(last.path)}" if saved else f"{line}, with nothing saved"
        if not saved:
            return f"stopped by {stopped}"
        best = _callback(self.trainer, BestCheckpoint)
        path = best.best_model_path if best is not None and best.best_model_path else str(last.path)
        return f"stopped by {stopped} after training; test it with: {format_evaluation(Path(path))}"


def _callback(trainer: Any, kind: type) -> Any:
    return next((each for each in getattr(trainer, "callbacks", []) if isinstance(each, kind)), None)
