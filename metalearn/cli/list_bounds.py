"""``metalearn list bounds``: orders of oracle calls, upper bounds beside lower ones."""

from __future__ import annotations

from dataclasses import replace

from metalearn.reports.listing import Listing
from metalearn.theory.oracle_table import complexity_table

__all__ = ["list_bounds"]

MORE = "metalearn.theory.complexity_table(kappa=..., eps=...) in Python evaluates them, and draw_complexity draws them."


def list_bounds() -> Listing:
    """The table of :func:`metalearn.theory.complexity_table`, its oracle calls in one column."""
    table = complexity_table()
    columns = {"name": "bound", "setting": "Phi", "calls": "oracle calls", "status": "status"}
    return replace(table, columns=columns, wraps=["name", "calls"], note=f"{table.note}\n{MORE}")
