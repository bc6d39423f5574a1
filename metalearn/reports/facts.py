"""How a summary says what was measured, as text and as data."""

from __future__ import annotations

from typing import Any

from metalearn.bilevel.counts import OracleCounts
from metalearn.intervals import Interval
from metalearn.reports.outcome import Fact

__all__ = ["as_data", "as_result", "describe_interval", "format_loss", "format_share", "list_oracle_calls"]


def format_share(share: Interval) -> str:
    """Such as ``"97.31 % ± 0.25"``; without an interval for a single task."""
    return f"{100 * share.mean:.2f} %" + (f" ± {100 * share.ci95:.2f}" if share.tasks > 1 else "")


def format_loss(loss: Interval) -> str:
    """Such as ``"0.0812 ± 0.0031"``; without an interval for a single task."""
    return f"{loss.mean:.4f}" + (f" ± {loss.ci95:.4f}" if loss.tasks > 1 else "")


def describe_interval(interval: Interval) -> str:
    """What the number after ``±`` is, and over how many tasks."""
    return f"(95 % interval over {interval.tasks} tasks)" if interval.tasks > 1 else "(one task, so no interval)"


def as_data(measured: Interval | float) -> dict[str, Any]:
    """A mean with half its 95 % interval and its number of tasks, both ``None`` where only the mean is known."""
    if isinstance(measured, Interval):
        return {"mean": measured.mean, "ci95": measured.ci95, "tasks": measured.tasks}
    return {"mean": measured, "ci95": None, "tasks": None}


def as_result(stage: str, measure: str, measured: Interval | float) -> dict[str, Any]:
    """What a run is compared by.

    Args:
        stage: ``"test"`` or ``"validation"``.
        measure: ``"accuracy"``, which is better where it is higher, or ``"loss"``.
        measured: its value.

    Returns:
        the measure among those of its stage, and once more as the ``"result"``.
    """
    data = as_data(measured)
    better = "lower" if measure == "loss" else "higher"
    return {stage: {measure: data}, "result": {"stage": stage, "measure": measure, "better": better, **data}}


def list_oracle_calls(counts: OracleCounts | None) -> list[Fact]:
    """The calls of a bilevel module as one line; none for any other."""
    if counts is None:
        return []
    calls = counts.as_dict()
    text = ", ".join(f"{name} {count:,}" for name, count in calls.items())
    return [Fact("oracle calls", text, {"training": {"oracle_calls": calls}})]
