"""Tables of a run's tasks: what each has scored, and what was predicted for its queries."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import BasePredictionWriter

from metalearn.modules.callbacks.run_folder import find_run_folder
from metalearn.modules.episodic.class_report import write_records
from metalearn.modules.episodic.facts import ModuleFacts
from metalearn.reports.tables import write_csv

__all__ = ["PredictionTable", "TaskTable"]


class TaskTable(L.Callback):
    """Writes ``test_tasks.csv``: the metric of every test task, from which the printed interval can be recomputed.

    Further test loaders have ``test_tasks_1.csv``, ``test_tasks_2.csv``, ... The module gives the rows by its
    ``test_table(index)``, see :class:`~metalearn.reports.outcome.ReportsOutcome`.

    Where the data module names the classes of tasks, ``classes.csv`` has a line for each; tasks with several labels an example
    have ``labels.csv``.

    Attributes:
        path: the file, once it is written.
        classes: the table of classes or labels of the first loader, once it is written.
    """

    path: Path | None = None
    classes: Path | None = None

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not hasattr(pl_module, "test_table"):
            return
        module: Any = pl_module
        where = find_run_folder(trainer)
        for index in range(len(trainer.num_test_batches)):
            header, rows = module.test_table(index)
            if trainer.is_global_zero:
                path = write_csv(where / (f"test_tasks_{index}.csv" if index else "test_tasks.csv"), header, rows)
                self.path = self.path if index else path
                if isinstance(module, ModuleFacts):
                    self._write_classes(trainer, module, where, index)

    def _write_classes(self, trainer: Any, module: ModuleFacts, where: Path, index: int) -> None:
        data = trainer.datamodule if len(trainer.num_test_batches) == 1 else None
        path = write_records(module.test_records(index), data, where, f"_{index}" if index else "")
        self.classes = self.classes if index else path


class PredictionTable(BasePredictionWriter):
    """Writes ``predictions.csv`` (per rank under DDP): a row per query with its probability for every class.

    Targets that are values have the predicted ones beside them, and the bounds of their band; labels have their probabilities.

    Attributes:
        path: the file, once it is written.
    """

    path: Path | None = None

    def __init__(self) -> None:
        super().__init__("epoch")
        self._truth: list[torch.Tensor] = []

    def on_predict_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        tasks = batch if isinstance(outputs, list) else [batch]
        self._truth += [truth.cpu() for task in tasks for truth in task[1][1]]

    def write_on_epoch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, predictions: Sequence[Any], batch_indices: Sequence[Any]
    ) -> None:
        where = find_run_folder(trainer)
        tasks = [outputs.float().cpu() for outputs in _list_tasks(predictions)]
        classifies = getattr(pl_module, "classifies", True) and all(outputs.ndim == 2 for outputs in tasks)
        names = ["p"]
        if not classifies:
            names, tasks = _read_values(pl_module, tasks)
        # values of any shape, and the classes of places, are written as one row of numbers for every query
        tasks = [outputs.flatten(1) if outputs.ndim > 1 else outputs.unsqueeze(1) for outputs in tasks]
        truths = [truth.flatten(1) if truth.ndim > 1 else truth.unsqueeze(1) for truth in self._truth]
        width = max((outputs.shape[1] for outputs in tasks), default=0)
        rows: list[list[Any]] = []
        for number, (outputs, truth) in enumerate(zip(tasks, truths, strict=True)):
            task = number * trainer.world_size + trainer.global_rank
            for query, (row, target) in enumerate(zip(outputs.tolist(), truth.tolist(), strict=True)):
                rest = [*target, max(range(len(row)), key=row.__getitem__)] if classifies else target
                rows.append([task, query, *rest, *row, *[""] * (width - len(row))])
        self._truth.clear()
        if not rows:
            return
        columns = ["class", "predicted", *(f"p{i}" for i in range(width))] if classifies else [
            *(f"target{i}" for i in range(truths[0].shape[1])),
            *(f"{name}{i}" for name in names for i in range(width // len(names))),
        ]  # fmt: skip
        name = "predictions.csv" if trainer.world_size == 1 else f"predictions_rank{trainer.global_rank}.csv"
        self.path = write_csv(where / name, ["task", "query", *columns], rows)


def _read_values(module: Any, tasks: list[torch.Tensor]) -> tuple[list[str], list[torch.Tensor]]:
    """The names of columns, and for each task its columns side by side."""
    if not isinstance(module, ModuleFacts):
        return ["predicted"], tasks
    parts = [module.read_outputs(outputs) for outputs in tasks]
    wide = [{name: part.reshape(len(part), -1) for name, part in columns.items()} for columns in parts]
    return list(parts[0]) if parts else ["predicted"], [torch.cat(list(columns.values()), 1) for columns in wide]


def _list_tasks(predictions: Any) -> list[torch.Tensor]:
    """The outputs of every task, of whatever nesting loaders, batches and lists of tasks give."""
    if isinstance(predictions, torch.Tensor):
        return list(predictions)
    return [outputs for part in predictions for outputs in _list_tasks(part)]
