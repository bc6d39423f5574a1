"""How many oracle calls a method needs in theory."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

from metalearn.checks import check_number, check_whole, find_nearest, quote_value
from metalearn.errors import ConfigError
from metalearn.theory.oracle_rows import ROWS, Bound, OrderStatus, Row, Setting

__all__ = ["Complexity", "check_symbols", "complexity", "count_calls"]


@dataclass(frozen=True)
class Complexity:
    """Orders of oracle calls, evaluated: constants and logarithms are left out, so ratios alone mean something.

    Attributes:
        algorithm: the method, or the lower bound.
        setting: which problems it is of. ``eps`` bounds ``|grad Phi|^2`` of nonconvex ones, ``Phi - min Phi`` of others.
        bound: ``upper`` or ``lower``.
        gc_f: gradients of ``f``; of MAML, of the query losses. ``None`` where no bound is known, as for the other kinds.
        gc_g: gradients of ``g``; of MAML, of the support losses.
        jvp: products with ``grad_xy g``.
        hvp: products with ``grad_yy g``.
        total: all calls together, which is the order of the most frequent kind.
        orders: the formula of each number.
        source: the paper.
        status: ``confirmed``, ``abstract``, ``derived here`` or ``recalled``.
        note: what to know beside it.

    Example:
        >>> from metalearn.theory import complexity
        >>> aid, itd = (complexity(name, kappa=100.0, eps=0.01) for name in ("AID-BiO", "ITD-BiO"))
        >>> round(itd.hvp / aid.hvp), aid.orders["hvp"], aid.status
        (10, 'k^3.5/eps', 'confirmed')
    """

    algorithm: str
    setting: Setting
    bound: Bound
    gc_f: float | None
    gc_g: float | None
    jvp: float | None
    hvp: float | None
    total: float | None
    orders: dict[str, str]
    source: str
    status: OrderStatus
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """All of it, in the types of JSON."""
        return asdict(self)


def complexity(
    algorithm: str, *, kappa: float, eps: float, mu_x: float | None = None, steps: int | None = None
) -> Complexity:
    """Evaluate the published order of oracle calls of a method, or of a lower bound.

    Constants and logarithms are left out. So one number alone says nothing; two of the same kind compare.

    Source: the row's own, see :func:`complexity_table`.

    Args:
        algorithm: the name, such as ``AID-BiO`` or ``aid_bio``. :func:`complexity_table` lists all.
        kappa: the condition number ``L/mu`` of ``g``, with ``L = 1``.
        eps: the accuracy. It bounds ``|grad Phi|^2`` where ``Phi`` is nonconvex, else ``Phi - min Phi``.
        mu_x: the strong convexity of ``Phi``, at most 1. Methods for strongly convex ones need it.
        steps: the number of inner steps. Multi-step MAML needs it.

    Raises:
        ConfigError: there is no such method, a number is out of range, or one is missing.

    Example:
        >>> from metalearn.theory import complexity
        >>> round(complexity("AID-BiO", kappa=10.0, eps=0.1).gc_g)
        100000
    """
    row = _look_up(algorithm)
    check_symbols("complexity", kappa=kappa, eps=eps, mu_x=mu_x, steps=steps)
    symbols: dict[str, float | None] = {"kappa": kappa, "eps": eps, "mu_x": mu_x, "steps": steps}
    for name in sorted(row.needs()):
        if symbols[name] is None:
            raise ConfigError(
                f"complexity({algorithm!r}) has no {name}, but {row.algorithm} needs it; give {name}="
                f"{'5' if name == 'steps' else '0.01'}"
            )
    return count_calls(row, symbols)


def check_symbols(owner: str, *, kappa: float | None, eps: float | None, mu_x: float | None, steps: int | None) -> None:
    """Raise a ConfigError unless every number that is there is in its range."""
    if kappa is not None:
        check_number("kappa", kappa, "use 10.0", least=1, owner=owner, loose=True)
    if eps is not None:
        check_number("eps", eps, "use 0.01", above=0, owner=owner, loose=True)
    if mu_x is not None:
        check_number("mu_x", mu_x, "use 0.01", above=0, most=1, owner=owner, loose=True)
    if steps is not None:
        check_whole("steps", steps, 1, owner=owner)


def count_calls(row: Row, symbols: dict[str, float | None]) -> Complexity:
    """The numbers of a row; ``None`` where a symbol is missing."""
    values = {name: None if order is None else order.value(**symbols) for name, order in row.kinds().items()}
    orders = {name: str(order) for name, order in row.kinds().items() if order is not None}
    if row.total:
        totals = [order.value(**symbols) for order in row.total]
        orders["total"] = str(row.total[0]) if len(row.total) == 1 else f"min({', '.join(map(str, row.total))})"
        total = min((value for value in totals if value is not None), default=None)
    else:
        total = max((value for value in values.values() if value is not None), default=None)
    return Complexity(
        row.algorithm, row.setting, row.bound, **values, total=total, orders=orders, source=row.source,
        status=row.status, note=row.note,
    )  # fmt: skip


def _look_up(algorithm: str) -> Row:
    known = {_simplify(row.algorithm): row for row in ROWS}
    row = known.get(_simplify(algorithm)) if isinstance(algorithm, str) else None
    if row is None:
        near = find_nearest(str(algorithm), [row.algorithm for row in ROWS], 1) or [ROWS[0].algorithm]
        raise ConfigError(
            f"algorithm is {quote_value(algorithm)}, but it must be a name in complexity_table(), as metalearn list bounds "
            f"prints it; use {near[0]!r}"
        )
    return row


def _simplify(name: str) -> str:
    """Letters, digits and + alone, so that ``aid_bio`` is ``AID-BiO``."""
    return re.sub(r"[^a-z0-9+]", "", name.lower())
