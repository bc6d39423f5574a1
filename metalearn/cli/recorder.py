"""Keeps ``run.json`` of a run: written when the run begins, and once more when it ends, however it does."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.accelerators import CUDAAccelerator

from metalearn.cli.task_checksums import checksum_test_tasks
from metalearn.errors import ConfigError, DataError
from metalearn.experiments.asked import Asked
from metalearn.experiments.record import Record, Session, begin_session, read_record, write_record
from metalearn.modules.callbacks.run_folder import find_run_folder

__all__ = ["FolderIsTaken", "RunRecorder"]


class FolderIsTaken(ConfigError):
    """Another training writes into the run's folder: what is there is not this command's to remove."""


class RunRecorder(L.Callback):
    """Writes the record on the first process alone, where the run has a folder.

    Args:
        asked: what the user asked for.
        name: of the run.
        seed: ``seed_everything``.
    """

    def __init__(self, asked: Asked, name: str, seed: int | None) -> None:
        self._asked, self._name, self._seed = asked, name, seed
        self._folder: Path | None = None
        self._session: Session | None = None
        self._step: int | None = None
        self._test_tasks: list[str] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Begin; the test that follows a training is part of it."""
        folder = find_run_folder(trainer)
        silent: Any = getattr(trainer, "fast_dev_run", False) or getattr(trainer, "barebones", False)
        if self._session is not None or silent or not trainer.is_global_zero:
            return
        before = read_record(folder)
        if before is not None and self._asked.command == "fit" and before.session.state == "running":
            raise FolderIsTaken(
                f"another training (process {before.session.process.get('pid')}) writes into {folder}; start this one "
                "again, or give it a --run_name of its own"
            )
        if before is None and self._asked.command != "fit" and (folder / "checkpoints").is_dir():
            return  # a run from before there were records: an evaluation says nothing of its training
        asked = self._asked
        session = begin_session(
            asked.arguments, asked.command, asked.configs, asked.changes, self._seed, list_gpus(trainer),
            torch.get_num_threads(),
        )  # fmt: skip
        record = Record(self._name, session) if before is None else before.add(session)
        write_record(folder, record)
        self._folder, self._session = folder, session

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._step = trainer.global_step

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._step = trainer.global_step

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._session is not None:
            self._test_tasks = checksum_test_tasks(getattr(trainer, "datamodule", None))

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if trainer.state.fn == "fit":
            self._step = trainer.global_step

    def finish(self, summary: dict[str, Any] | None = None) -> None:
        """The command has done all that it was to do."""
        self._end("finished", summary)

    def fail(self, error: BaseException, interrupted: bool) -> None:
        """The command ends before its time; a record that cannot be written now is not worth another error."""
        line = None if interrupted else " ".join(str(error).split())[:500] or type(error).__name__
        with suppress(DataError):
            self._end("interrupted" if interrupted else "failed", None, line)

    def _end(self, status: str, summary: dict[str, Any] | None, error: str | None = None) -> None:
        if self._session is None or self._folder is None or not self._folder.is_dir():
            return
        session = self._session.finish(
            status, step=self._step, summary=summary, error=error, test_tasks=self._test_tasks
        )
        write_record(self._folder, (read_record(self._folder) or Record(self._name, session)).update(session))


def list_gpus(trainer: L.Trainer) -> list[str]:
    """The names of the GPUs that this process's part of a run uses."""
    if not isinstance(trainer.accelerator, CUDAAccelerator):
        return []
    return [torch.cuda.get_device_name(number) for number in trainer.device_ids]
