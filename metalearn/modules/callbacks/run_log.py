"""``metrics.csv`` and ``hparams.yaml`` of a run; a run that goes on, or is evaluated, adds to the table it has."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.core.saving import save_hparams_to_yaml
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_only

from metalearn.errors import DataError, suggest_space
from metalearn.reports.tables import read_whole_rows, write_atomically

__all__ = ["LogFromHere", "RunLog"]


class RunLog(CSVLogger):
    """Lightning's CSV logger for a folder that may hold a run already: its rows stay, up to the step that training goes on from.

    Args:
        save_dir: the folder of all runs.
        name: a folder in it.
        version: the run's folder in that; ``None`` for a new one.
        evaluates: the run is only evaluated: its arguments stay as they are.
        step: of the rows that an evaluation adds: the outer steps of the checkpoint.
    """

    def __init__(
        self, save_dir: str, name: str, version: str | None = None, evaluates: bool = False, step: int = 0
    ) -> None:
        super().__init__(save_dir=save_dir, name=name, version=version)
        self.evaluates, self.step = evaluates, step

    @property
    @rank_zero_experiment
    def experiment(self) -> RunTable:
        if self._experiment is None:
            self._experiment = RunTable(Path(self.log_dir), writes_hparams=not self.evaluates)  # type: ignore[assignment]
        return self._experiment  # type: ignore[return-value]

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        super().log_metrics(metrics, self.step if self.evaluates else step)

    @rank_zero_only
    def go_on(self, step: int) -> None:
        """Drop the rows of steps that will be done again."""
        self.experiment.cut(step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        try:
            super().finalize(status)
        except DataError:
            if status != "failed":  # else what has failed is reported already, and was most likely the same
                raise


class LogFromHere(L.Callback):
    """Has a :class:`RunLog` go on where training does."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if isinstance(trainer.logger, RunLog):
            trainer.logger.go_on(trainer.global_step)


class RunTable:
    """The rows of ``metrics.csv``. Each flush adds to the file; it is written anew, whole, when a column comes in.

    Args:
        folder: of the run, made if it is not there.
        writes_hparams: whether ``hparams.yaml`` is written.
    """

    def __init__(self, folder: Path, writes_hparams: bool) -> None:
        self.path = folder / "metrics.csv"
        self.metrics: list[dict[str, Any]] = []
        self._writes_hparams = writes_hparams
        self._hparams: dict[str, Any] = {}
        self._columns: list[str] = []
        self._old = _read(self.path)
        self._whole = False
        _make(folder)

    def log_metrics(self, metrics: dict[str, Any], step: int) -> None:
        """Take a row."""
        self.metrics.append({**{name: float(value) for name, value in metrics.items()}, "step": step})

    def log_hparams(self, params: dict[str, Any]) -> None:
        """Write ``hparams.yaml``."""
        self._hparams.update(params)
        if self._writes_hparams:
            try:
                save_hparams_to_yaml(self.path.with_name("hparams.yaml"), self._hparams)
            except OSError as error:
                raise _unwritable(self.path.with_name("hparams.yaml"), error) from error

    def cut(self, step: int) -> None:
        """Drop the rows of this step and later ones from what the file holds."""
        self._old = [row for row in self._old if int(row["step"]) < step]

    def save(self) -> None:
        """Write the rows since the last time.

        Raises:
            DataError: the file cannot be written.
        """
        if not self.metrics:
            return
        columns = sorted({*self._columns, *(name for row in [*self._old, *self.metrics] for name in row)})
        if self._whole and columns == self._columns:
            self._append()
        else:
            rows = (_read(self.path) if self._whole else self._old) + self.metrics
            write_atomically(self.path, _text(columns, rows, header=True).encode())
            self._columns, self._whole = columns, True
        self._old = []
        self.metrics = []

    def _append(self) -> None:
        try:
            with self.path.open("a", newline="") as file:
                file.write(_text(self._columns, self.metrics, header=False))
        except OSError as error:
            raise _unwritable(self.path, error) from error


def _text(columns: list[str], rows: list[dict[str, Any]], header: bool) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _read(path: Path) -> list[dict[str, Any]]:
    """The rows that are whole; the last one of a killed run may not be."""
    if not path.is_file():
        return []
    return [row for row in read_whole_rows(path) if row.get("step", "").isdigit()]


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from error


def _unwritable(path: Path, error: OSError) -> DataError:
    return DataError(
        f"{path} cannot be written ({error.strerror or error}); {suggest_space(error)}, or write elsewhere with another "
        "trainer.default_root_dir"
    )
