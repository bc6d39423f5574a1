"""The published orders of oracle calls in one table, upper bounds beside lower ones."""

from __future__ import annotations

from typing import Any

from metalearn.reports.listing import Listing
from metalearn.theory.oracle_calls import Complexity, check_symbols, count_calls
from metalearn.theory.oracle_rows import ROWS

__all__ = ["complexity_table"]

KINDS = ("gc_f", "gc_g", "jvp", "hvp", "total")
NOTE = (
    "Orders: constants and logarithms are left out. eps bounds |grad Phi|^2 of a nonconvex Phi, Phi - min Phi of others. "
    "k = L/mu is the condition number of g, with L = 1. N inner steps. An empty cell: no bound is known. "
    "confirmed: a second paper agrees. abstract: the paper's abstract says it. recalled: from memory, not looked up."
)


def complexity_table(
    *, kappa: float | None = None, eps: float | None = None, mu_x: float | None = None, steps: int | None = None
) -> Listing:
    """Make a table of oracle calls; ``print`` writes it as Markdown, ``show()`` for the terminal.

    Cells hold formulas. Where all the numbers that a formula needs are there, they hold its value.

    Args:
        kappa: the condition number ``L/mu`` of ``g``, with ``L = 1``.
        eps: the accuracy.
        mu_x: the strong convexity of ``Phi``, at most 1.
        steps: the number of inner steps of MAML.

    Raises:
        ConfigError: a number is out of range.

    Example:
        >>> from metalearn.theory import complexity_table
        >>> print(str(complexity_table(kappa=10.0, eps=0.1)).splitlines()[3])
        | AID-BiO | nonconvex | upper | 1e+04 | 1e+05 | 1e+04 | 3.16e+04 |  | confirmed |
    """
    check_symbols("complexity_table", kappa=kappa, eps=eps, mu_x=mu_x, steps=steps)
    symbols: dict[str, float | None] = {"kappa": kappa, "eps": eps, "mu_x": mu_x, "steps": steps}
    rows = [_make_row(count_calls(row, symbols)) for row in ROWS]
    columns = {"name": "bound", "setting": "Phi", "bound": "kind", **{name: name for name in KINDS}, "status": "status"}
    return Listing("bounds", columns, rows, ["name", "setting", "total", "status"], NOTE)


def _make_row(calls: Complexity) -> dict[str, Any]:
    values = {name: getattr(calls, name) for name in KINDS}
    cells = {name: f"{values[name]:.3g}" if values[name] is not None else text for name, text in calls.orders.items()}
    plain = {name: value for name, value in calls.as_dict().items() if name not in (*KINDS, "algorithm", "orders")}
    return {"name": calls.algorithm, **plain, **cells, "values": values, "calls": _join(cells) or calls.note}


def _join(cells: dict[str, str]) -> str:
    """All cells as one, equal ones said once: ``gc_f, jvp k^3/eps; gc_g k^4/eps``."""
    kinds: dict[str, list[str]] = {}
    for kind, cell in cells.items():
        kinds.setdefault(cell, []).append(kind)
    return "; ".join(f"{', '.join(names)} {cell}" for cell, names in kinds.items())
