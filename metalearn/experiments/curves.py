"""The curves of a training, read from its table of metrics."""

from __future__ import annotations

import math
from pathlib import Path

from metalearn.reports.tables import parse_number, read_whole_rows

__all__ = ["Curve", "read_curves"]

Curve = tuple[list[int], list[float]]
"""Steps, and values at them."""
LARGEST = 256 << 20
"""Bytes."""


def read_curves(folder: Path) -> dict[str, Curve]:
    """The columns ``train/...`` and ``val/...`` of ``metrics.csv`` by name; none where there is no table that can be read."""
    path = folder / "metrics.csv"
    try:
        if path.stat().st_size > LARGEST:
            return {}
        rows = read_whole_rows(path)
    except OSError:
        return {}
    curves: dict[str, dict[int, float]] = {}
    for row in rows:
        step = row.get("step", "")
        for name, value in row.items():
            if name.startswith(("train/", "val/")) and step.isdigit():
                number = parse_number(value)
                if math.isfinite(number):
                    curves.setdefault(name, {})[int(step)] = number
    return {name: (sorted(points), [points[step] for step in sorted(points)]) for name, points in curves.items()}
