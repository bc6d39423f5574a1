"""What is published of how many oracle calls methods need, as orders: constants and logarithms are left out.

``eps`` bounds ``|grad Phi|^2`` where ``Phi`` is nonconvex, and ``Phi - min Phi`` where it is convex. Sources that bound
``|grad Phi|`` are converted. ``k = L/mu`` is the condition number of ``g`` with ``L = 1``; ``mu_x`` is the strong convexity of
``Phi``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

__all__ = ["NOTHING", "ROWS", "Bound", "Order", "OrderStatus", "Row", "Setting"]

OrderStatus = Literal["confirmed", "abstract", "derived here", "recalled"]
"""``confirmed``: a second paper agrees. ``abstract``: the paper's abstract says so. ``recalled``: from memory, unchecked."""
Setting = Literal["nonconvex", "nonconvex, batches", "strongly convex", "convex", "meta-learning"]
Bound = Literal["upper", "lower"]


@dataclass(frozen=True)
class Order:
    """A product of powers.

    Attributes:
        kappa: the power of ``k``; ``None`` where it is not published, so that the order has no value.
        eps: the power of ``1/eps``.
        mu_x: the power of ``1/mu_x``.
        steps: the power of the number of inner steps ``N``.
        factor: a number in front.
    """

    kappa: float | None = 0
    eps: float = 0
    mu_x: float = 0
    steps: float = 0
    factor: float = 1

    def value(self, **symbols: float | None) -> float | None:
        """The number for these ``kappa``, ``eps``, ``mu_x`` and ``steps``; ``None`` where one that it needs is missing."""
        if self.kappa is None:
            return None
        total = math.log(self.factor) if self.factor else -math.inf
        for name, power in self.powers():
            value = symbols.get(name)
            if value is None:
                return None
            total += power * math.log(value)
        return math.exp(total) if total < 700 else math.inf

    def needs(self) -> set[str]:
        """The symbols that it has."""
        return {name for name, _ in self.powers()}

    def powers(self) -> Iterator[tuple[str, float]]:
        """The symbols that it has, with their powers."""
        signs = {"kappa": self.kappa or 0, "steps": self.steps, "mu_x": -self.mu_x, "eps": -self.eps}
        yield from ((name, power) for name, power in signs.items() if power)

    def __str__(self) -> str:
        """As ``k^3.5/eps``."""
        if not self.factor:
            return "0"
        above = [_raise(symbol, power) for symbol, power in (("k", self.kappa or 0), ("N", self.steps)) if power]
        below = [_raise(symbol, power) for symbol, power in (("mu_x", self.mu_x), ("eps", self.eps)) if power]
        text = "/".join([" ".join(above) or "1", *below])
        return text if self.kappa is not None else f"{text}, k unknown"


NOTHING = Order(factor=0)
"""No call of this kind is made."""


@dataclass(frozen=True)
class Row:
    """What is published of a method, or of every method.

    Attributes:
        algorithm: its name.
        setting: which problems it is of.
        bound: ``upper``: the method needs no more. ``lower``: no method of its kind needs less.
        source: the paper.
        status: how well it is known here.
        gc_f: gradients of ``f``; of MAML, of the query losses.
        gc_g: gradients of ``g``; of MAML, of the support losses.
        jvp: products with ``grad_xy g``.
        hvp: products with ``grad_yy g``.
        total: all calls together, where that is what is published; of several orders the least holds.
        note: what a reader must know beside it.
    """

    algorithm: str
    setting: Setting
    bound: Bound
    source: str
    status: OrderStatus
    gc_f: Order | None = None
    gc_g: Order | None = None
    jvp: Order | None = None
    hvp: Order | None = None
    total: tuple[Order, ...] = ()
    note: str = ""

    def kinds(self) -> dict[str, Order | None]:
        """The order of each kind of call."""
        return {"gc_f": self.gc_f, "gc_g": self.gc_g, "jvp": self.jvp, "hvp": self.hvp}

    def needs(self) -> set[str]:
        """The symbols that its orders have."""
        orders = [*(order for order in self.kinds().values() if order), *self.total]
        return {name for order in orders for name in order.needs()}


THESIS = "Ji, Yang and Liang 2021 (arXiv 2010.07962), thesis"
LOWER = "Ji and Liang 2021 (arXiv 2102.03926), thesis"
FIRST_ORDER = "Chen, Ma and Zhang 2023 (arXiv 2306.14853)"
DEPENDENCY = "Chen and Zhang 2025 (arXiv 2511.22331)"
JI = "Ji 2025 (arXiv 2511.19656)"
VARIANCE = "Yang, Ji and Liang 2021 (arXiv 2106.04692)"
MULTI_STEP = "Ji, Yang and Liang 2022 (arXiv 2002.07836)"
GHADIMI = "Ghadimi and Wang 2018 (arXiv 1802.02246), as in the thesis"
PARTIAL = "Ji, Lee, Liang and Poor 2020 (arXiv 2006.09486)"

DETERMINISTIC: tuple[Row, ...] = (
    Row("BA", "nonconvex", "upper", GHADIMI, "recalled", Order(4, 1), Order(5, 1.25), Order(4, 1), Order(4.5, 1)),
    Row("AID-BiO", "nonconvex", "upper", THESIS, "confirmed", Order(3, 1), Order(4, 1), Order(3, 1), Order(3.5, 1)),
    Row("ITD-BiO", "nonconvex", "upper", THESIS, "confirmed", Order(3, 1), Order(4, 1), Order(4, 1), Order(4, 1)),
    Row("ProximalBiO", "nonconvex", "upper", "Chen, Kailkhura and Zhou 2022 (arXiv 2203.16615)", "abstract",
        total=(Order(3.5, 1),), note="with Nesterov's momentum in the implicit gradient"),
    Row("F2BA", "nonconvex", "upper", FIRST_ORDER, "confirmed", Order(4, 1), Order(4, 1), NOTHING, NOTHING),
    Row("F2BA+", "nonconvex", "upper", DEPENDENCY, "abstract", Order(3.5, 1), Order(3.5, 1), NOTHING, NOTHING),
    Row("RAHGD", "nonconvex", "upper", "Yang, Luo, Li and Jordan 2023 (arXiv 2307.00126)", "abstract",
        total=(Order(3.25, 0.875),), note="for functions with more smoothness than the others need"),
    Row("lower bound, Ji", "nonconvex", "lower", JI, "abstract", total=(Order(1.5, 1),)),
    Row("lower bound, Chen and Zhang", "nonconvex", "lower", DEPENDENCY, "abstract", total=(Order(2.5, 1),),
        note="of its version 2; version 1 had the power 2 of k"),
)  # fmt: skip
STOCHASTIC: tuple[Row, ...] = (
    Row("BSA", "nonconvex, batches", "upper", GHADIMI, "recalled", Order(6, 2), Order(9, 3), Order(6, 2), Order(6, 2)),
    Row("stocBiO", "nonconvex, batches", "upper", THESIS, "confirmed", Order(5, 2), Order(9, 2), Order(5, 2), Order(6, 2),
        note="the power of hvp is recalled; the others are confirmed"),
    Row("MRBO", "nonconvex, batches", "upper", VARIANCE, "abstract", total=(Order(None, 1.5),)),
    Row("VRBO", "nonconvex, batches", "upper", VARIANCE, "abstract", total=(Order(None, 1.5),)),
    Row("F2SA", "nonconvex, batches", "upper", "Chen, Li, Chayti and Zhang 2025 (arXiv 2509.02937)", "abstract",
        Order(None, 3), Order(None, 3), NOTHING, NOTHING,
        note="F2SA-p has p/eps^(2 + 1/p), for inner functions that are p times as smooth"),
    Row("lower bound, batches, Ji", "nonconvex, batches", "lower", JI, "abstract", total=(Order(2.5, 2),)),
    Row("lower bound, batches", "nonconvex, batches", "lower", DEPENDENCY, "abstract", total=(Order(4, 2),)),
)  # fmt: skip
CONVEX: tuple[Row, ...] = (
    Row("AccBiO", "strongly convex", "upper", LOWER, "recalled", total=(Order(3, mu_x=0.5),),
        note="without a bound on the gradient of f"),
    Row("AccBiO-BG", "strongly convex", "upper", LOWER, "recalled", total=(Order(2, mu_x=0.5),),
        note="where the gradient of f is bounded"),
    Row("AccBiO-BG, quadratic g", "strongly convex", "upper", LOWER, "recalled", total=(Order(1.5, mu_x=0.5),)),
    Row("lower bound, strongly convex", "strongly convex", "lower", LOWER, "abstract", total=(Order(1, mu_x=0.5),)),
    Row("AccBiO-BG, convex", "convex", "upper", "derived here from AccBiO-BG with mu_x = eps/R^2 and R = 1", "derived here",
        total=(Order(2, 0.5),)),
    Row("lower bound, convex, 2021", "convex", "lower", LOWER, "abstract", total=(Order(1, 0.5), Order(0, 2))),
    Row("lower bound, convex", "convex", "lower", DEPENDENCY, "abstract", total=(Order(1.5, 0.5),),
        note="of its version 2; version 1 had the power 1.25 of k"),
)  # fmt: skip
META: tuple[Row, ...] = (
    Row("MAML, resampling", "meta-learning", "upper", MULTI_STEP, "recalled",
        gc_g=Order(eps=2, steps=1), hvp=Order(eps=1, steps=1)),
    Row("MAML, finite sum", "meta-learning", "upper", MULTI_STEP, "recalled",
        gc_g=Order(eps=1, steps=1), hvp=Order(eps=1, steps=1)),
    Row("ANIL, strongly convex", "meta-learning", "upper", PARTIAL, "abstract",
        note="more inner steps make it faster; no order is known here"),
    Row("ANIL, nonconvex", "meta-learning", "upper", PARTIAL, "abstract",
        note="more inner steps make it slower; no order is known here"),
)  # fmt: skip
ROWS: tuple[Row, ...] = (*DETERMINISTIC, *STOCHASTIC, *CONVEX, *META)
"""Every row."""


def _raise(symbol: str, power: float) -> str:
    exact = Fraction(power).limit_denominator(8)
    text = str(exact.numerator) if exact.denominator == 1 else f"{float(exact):g}"
    return symbol if power == 1 else f"{symbol}^{text}"
