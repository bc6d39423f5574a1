"""How a summary writes shares, losses, intervals and oracle calls."""

from __future__ import annotations

from metalearn.bilevel.counts import OracleCounts
from metalearn.metrics import Interval
from metalearn.reports.outcome import Facts

__all__ = ["describe_interval", "format_loss", "format_share", "list_oracle_calls"]


def format_share(share: Interval) -> str:
    """Such as ``"97.31 % ± 0.25"``; without an interval for a single task."""
    return f"{100 * share.mean:.2f} %" + (f" ± {100 * share.ci95:.2f}" if share.tasks > 1 else "")


def format_loss(loss: Interval) -> str:
    """Such as ``"0.0812 ± 0.0031"``; without an interval for a single task."""
    return f"{loss.mean:.4f}" + (f" ± {loss.ci95:.4f}" if loss.tasks > 1 else "")


def describe_interval(interval: Interval) -> str:
    """What the number after ``±`` is, and over how many tasks."""
    return f"(95 % interval over {interval.tasks} tasks)" if interval.tasks > 1 else "(one task, so no interval)"


def list_oracle_calls(counts: OracleCounts | None) -> Facts:
    """The calls of a bilevel module as one line; none for any other."""
    if counts is None:
        return []
    return [("oracle calls", ", ".join(f"{name} {count:,}" for name, count in counts.as_dict().items()))]
