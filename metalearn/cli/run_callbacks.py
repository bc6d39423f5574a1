"""The callbacks of a run: what times it, writes its tables and checkpoints, shows it, and ends it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import lightning as L
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint, WeightAveraging

from metalearn.cli.interrupts import Signals
from metalearn.errors import ConfigError
from metalearn.modules.callbacks.clock import RunClock
from metalearn.modules.callbacks.progress import show_progress
from metalearn.modules.callbacks.run_log import LogFromHere
from metalearn.modules.callbacks.saving import BestCheckpoint, LastCheckpoint
from metalearn.modules.callbacks.start import StartNotice
from metalearn.modules.callbacks.stopping import StopOnSignal
from metalearn.modules.callbacks.tables import PredictionTable, TaskTable
from metalearn.reports.outcome import ReportsOutcome
from metalearn.theory.advisor import StepSizeAdvisor, check_advisor

__all__ = ["Advise", "RunCallbacks", "make_advisors"]

log = logging.getLogger(__name__)

Advise = bool | Literal["apply"]
"""What ``--advise`` may be."""


def make_advisors(
    advise: Advise, command: str, named: Sequence[L.Callback], model: L.LightningModule
) -> list[L.Callback]:
    """The advisor of a training that asks for one, unless the user names one with arguments of its own.

    Raises:
        ConfigError: the model cannot be advised.
    """
    if not advise or any(isinstance(callback, StepSizeAdvisor) for callback in named):
        return []
    if command != "fit":
        log.warning("advise is left out, since %s trains nothing", command)
        return []
    check_advisor(model, advise == "apply")
    return [StepSizeAdvisor(apply=advise == "apply")]


@dataclass
class RunCallbacks:
    """Our callbacks, beside those that the user names and the Trainer's own.

    Attributes:
        start: says what was held back, once a run begins.
        clock: of a training.
        tasks: the table of test tasks.
        predictions: the table of predictions.
    """

    start: StartNotice
    clock: RunClock = field(default_factory=RunClock)
    tasks: TaskTable = field(default_factory=TaskTable)
    predictions: PredictionTable = field(default_factory=PredictionTable)

    def join(
        self,
        own: list[L.Callback],
        model: L.LightningModule,
        command: str,
        signals: Signals,
        saves: bool,
        names_saver: bool,
    ) -> list[L.Callback]:
        """The callbacks of a Trainer, ours among them.

        Args:
            own: those that the Trainer has.
            model: that runs.
            command: ``"fit"``, ``"validate"``, ``"test"`` or ``"predict"``.
            signals: may end the run.
            saves: whether a training writes checkpoints.
            names_saver: whether the user names a ``ModelCheckpoint``; else the one that is there is the Trainer's default.

        Raises:
            ConfigError: the model's ``checkpoint_monitor`` is no metric and direction.
        """
        reports = isinstance(model, ReportsOutcome)
        ours: list[L.Callback] = [self.start, self.clock]
        if reports and hasattr(model, "test_table"):
            ours += [self.tasks, *([self.predictions] if command == "predict" else [])]
        last = None
        if command == "fit":
            ours.append(LogFromHere())
            if saves:
                monitor = _read_monitor(model) if reports else None
                if monitor is not None:
                    if not names_saver:
                        own = [callback for callback in own if not isinstance(callback, ModelCheckpoint)]
                    ours.append(BestCheckpoint(*monitor))
                last = LastCheckpoint()
                ours.append(last)
        else:  # it would put back the raw weights beside the averaged ones of the checkpoint
            own = [callback for callback in own if not isinstance(callback, WeightAveraging)]
        callbacks = [*show_progress(own), *ours]
        # what saves must stay behind what it saves, and stopping behind both
        return [
            *(callback for callback in callbacks if not isinstance(callback, Checkpoint)),
            *(callback for callback in callbacks if isinstance(callback, Checkpoint)),
            StopOnSignal(signals, last),
        ]


def _read_monitor(model: L.LightningModule) -> tuple[str, str] | None:
    monitor: Any = getattr(model, "checkpoint_monitor", None)
    if monitor is None:
        return None
    if not isinstance(monitor, (tuple, list)) or len(monitor) != 2 or monitor[1] not in ("min", "max"):
        raise ConfigError(
            f"{type(model).__name__}.checkpoint_monitor is {monitor!r}, but it must be a metric and 'min' or 'max'; use for "
            "example ('val/acc', 'max')"
        )
    return str(monitor[0]), str(monitor[1])
