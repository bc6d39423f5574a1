"""``metalearn list bounds``: orders of oracle calls, upper bounds beside lower ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from metalearn.reports.listing import Listing
from metalearn.theory.oracle_table import complexity_table

__all__ = ["list_bounds"]

KINDS = ("gc_f", "gc_g", "jvp", "hvp", "total")
MORE = "metalearn.theory.complexity_table(kappa=..., eps=...) in Python evaluates them, and draw_complexity draws them."


def list_bounds() -> Listing:
    """The table of :func:`metalearn.theory.complexity_table`, its oracle calls in one column."""
    table = complexity_table()
    rows = [{**row, "calls": _join_calls(row)} for row in table.rows]
    columns = {"name": "bound", "setting": "Phi", "calls": "oracle calls", "status": "status"}
    return replace(table, columns=columns, rows=rows, wraps=["name", "calls"], note=f"{table.note}\n{MORE}")


def _join_calls(row: Mapping[str, Any]) -> str:
    """The orders of a row, equal ones said once: ``gc_f, jvp k^3/eps; gc_g k^4/eps``."""
    kinds: dict[str, list[str]] = {}
    for kind in KINDS:
        if kind in row:
            kinds.setdefault(row[kind], []).append(kind)
    return "; ".join(f"{', '.join(names)} {order}" for order, names in kinds.items()) or row["note"]
