"""The curves of a training, read from its table of metrics."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

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
        text = path.read_text(errors="replace")
    except OSError:
        return {}
    curves: dict[str, dict[int, float]] = {}
    for row in csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1])):
        step = row.get("step") or ""
        for name, value in row.items():
            if isinstance(name, str) and name.startswith(("train/", "val/")) and value and step.isdigit():
                number = _number(value)
                if math.isfinite(number):
                    curves.setdefault(name, {})[int(step)] = number
    return {name: (sorted(points), [points[step] for step in sorted(points)]) for name, points in curves.items()}


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
