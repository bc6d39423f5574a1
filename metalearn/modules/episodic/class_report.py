"""The table and the pictures of the classes of a test, where its data say which classes the labels of a task are."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from metalearn.modules.episodic.records import QueryRecords
from metalearn.reports.calibration_picture import draw_calibration
from metalearn.reports.class_pictures import MOST_OF_A_MATRIX, draw_confusions, draw_matrix
from metalearn.reports.class_table import ClassTable, write_labels
from metalearn.reports.outcome import Picture, RunRecord

__all__ = ["draw_records", "write_records"]


def draw_records(records: QueryRecords, run: RunRecord) -> list[Picture]:
    """The reliability diagram, and which classes were taken for which."""
    pictures = []
    bins, table = records.bins, count_classes(records, run.data)
    if bins is not None:
        pictures.append(Picture("calibration.png", partial(draw_calibration, bins=bins.numpy(), title=run.name)))
    if table is not None and (table.tasks > 0).sum() <= MOST_OF_A_MATRIX:
        pictures.append(Picture("confusion_matrix.png", partial(draw_matrix, table=table, title=run.name)))
    elif table is not None:
        pictures.append(Picture("confusions.png", partial(draw_confusions, table=table, title=run.name)))
    return pictures


def write_records(records: QueryRecords, data: Any, folder: Path, end: str = "") -> Path | None:
    """Write ``classes.csv``, or ``labels.csv`` for tasks with several labels an example.

    Args:
        records: of a test.
        data: the data module, if there is one.
        folder: of the run.
        end: of the names of files, for a further loader.

    Returns:
        the file, or ``None`` where classes have no names beyond their task.
    """
    if records.labels is not None and len(records.labels):
        return write_labels(folder / f"labels{end}.csv", records.labels.numpy())
    table = count_classes(records, data)
    return None if table is None else table.write(folder / f"classes{end}.csv")


def count_classes(records: QueryRecords, data: Any) -> ClassTable | None:
    """The table of classes; ``None`` where the data do not say which classes the labels of a task are.

    A data module says so by ``task_classes(split, numbers)``: the names of each task's classes in the order of labels.
    """
    name_classes = getattr(data, "task_classes", None)
    if name_classes is None or records.confusions is None or not len(records.confusions):
        return None
    rows = records.confusions.numpy()
    numbers = sorted(set(rows[:, 0].tolist()))
    names = name_classes("test", numbers)
    if names is None:
        return None
    return ClassTable.of(rows, dict(zip(numbers, names, strict=True)))
