"""Powers that may be too large for a float."""

from __future__ import annotations

import math

__all__ = ["raise_to", "sum_powers"]

LARGEST = math.log(1e308)


def raise_to(base: float, exponent: int) -> float:
    """``base^exponent`` of a base that is not negative; infinity where that is too large for a float."""
    base = float(base)
    return math.inf if base > 1 and exponent * math.log(base) > LARGEST else base**exponent


def sum_powers(base: float, count: int) -> float:
    """``1 + base + ... + base^(count - 1)``."""
    if abs(base - 1) * count < 1e-3:  # the closed form would lose digits
        return math.fsum(raise_to(base, exponent) for exponent in range(count))
    last = raise_to(base, count)
    return last if math.isinf(last) else (last - 1) / (base - 1)
