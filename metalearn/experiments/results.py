"""What a run has come to, from its record or, where it keeps none, from its tables."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metalearn.experiments.record import Record, Session
from metalearn.intervals import measure_interval
from metalearn.reports.tables import parse_number, read_whole_rows

__all__ = ["Result", "find_result", "read_last_row", "read_task_values"]

TAIL = 1 << 16
"""Bytes at the end of a table in which its last rows lie."""
LARGEST = 64 << 20
"""Bytes; a table of tasks has a few hundred for each."""


@dataclass(frozen=True)
class Result:
    """A measure.

    Attributes:
        stage: ``"test"`` or ``"validation"``.
        measure: ``"accuracy"`` or ``"loss"``.
        mean: over tasks, or the one value of a problem without tasks.
        ci95: half the width of the mean's 95 % interval over tasks; ``None`` without tasks.
        tasks: how many.

    Example:
        >>> from metalearn.experiments.results import Result
        >>> Result("test", "accuracy", mean=0.9731, ci95=0.0025, tasks=600).text
        '97.31 % ± 0.25'
    """

    stage: str
    measure: str
    mean: float
    ci95: float | None = None
    tasks: int | None = None

    @property
    def text(self) -> str:
        """Such as ``"97.31 % ± 0.25"``, ``"loss 0.0812 ± 0.0031"``, or ``"val 96.30 %"`` of a run without a test."""
        scale, digits = (100, 2) if self.measure == "accuracy" else (1, 4)
        text = f"{scale * self.mean:.{digits}f}" + (" %" if self.measure == "accuracy" else "")
        if self.ci95 is not None:
            text += f" ± {scale * self.ci95:.{digits}f}"
        text = text if self.measure == "accuracy" else f"{self.measure} {text}"
        return text if self.stage == "test" else f"val {text}"


def find_result(folder: Path, record: Record | None) -> Result | None:
    """The newest test of a run, else what its training ended with, else its last validation."""
    for session in [*reversed(record.evaluations), record.session] if record is not None else []:
        result = _read_summary(session)
        if result is not None and (session.command != "validate"):
            return result
    return _read_tasks(folder) or _read_metrics(folder)


def read_task_values(folder: Path) -> tuple[str, dict[int, float]]:
    """What the test tasks of a run have scored after the last inner step.

    Returns:
        the measure, ``"accuracy"`` or ``"loss"``, and its value for each task by the task's number.

    Raises:
        OSError: there is no table that can be read.
        ValueError: the table is another one.
    """
    path = folder / "test_tasks.csv"
    if path.stat().st_size > LARGEST:
        raise ValueError("it is too large")
    rows = read_whole_rows(path)
    if not rows:
        raise ValueError("it has no rows")
    columns = [name for name in rows[0] if name]
    for measure, start in (("accuracy", "acc"), ("loss", "loss")):
        steps = {name: _read_step(name, start) for name in columns if _read_step(name, start) >= 0}
        if steps and "task" in columns:
            last = max(steps, key=lambda name: steps[name])
            return measure, {int(row["task"]): float(row[last]) for row in rows if row[last]}
    raise ValueError("it has no columns task and acc_step_0 or loss_step_0")


def read_last_row(path: Path, column: str) -> Mapping[str, str] | None:
    """The last whole row of a table with something in a column, looked for near its end."""
    try:
        with path.open("rb") as file:
            header = file.readline()
            file.seek(max(len(header), path.stat().st_size - TAIL))
            tail = file.read()
    except OSError:
        return None
    lines = tail[: tail.rfind(b"\n") + 1].decode(errors="replace").splitlines()
    names = next(csv.reader([header.decode(errors="replace")]), [])
    if column not in names:
        return None
    for line in reversed(lines):
        values = next(csv.reader([line]), [])
        if len(values) == len(names) and values[names.index(column)]:
            return dict(zip(names, values, strict=True))
    return None


def _read_step(name: str, start: str) -> int:
    number = name.removeprefix(f"{start}_step_")
    return int(number) if number != name and number.isdigit() else -1


def _read_summary(session: Session) -> Result | None:
    result: Any = (session.summary or {}).get("result")
    if not isinstance(result, dict) or not _is_number(result.get("mean")):
        return None
    ci95: Any = result.get("ci95")
    tasks: Any = result.get("tasks")
    return Result(
        str(result.get("stage")), str(result.get("measure")), float(result["mean"]),
        ci95 if _is_number(ci95) else None, tasks if isinstance(tasks, int) else None,
    )  # fmt: skip


def _read_tasks(folder: Path) -> Result | None:
    try:
        measure, values = read_task_values(folder)
    except (OSError, ValueError):
        return None
    mean, ci95, tasks = measure_interval(list(values.values()))
    return Result("test", measure, mean, ci95 if tasks > 1 else None, tasks) if tasks else None


def _read_metrics(folder: Path) -> Result | None:
    for stage, start in (("test", "test/"), ("validation", "val/")):
        for measure, name in (("accuracy", "acc"), ("loss", "loss")):
            row = read_last_row(folder / "metrics.csv", start + name)
            if row is not None and _is_number(parse_number(row[start + name])):
                ci95 = parse_number(row.get(f"{start}{name}_ci95", ""))
                return Result(stage, measure, parse_number(row[start + name]), ci95 if _is_number(ci95) else None)
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
