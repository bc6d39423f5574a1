"""The interval of a mean of few values, by Student's t."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Spread", "spread", "student_quantile"]

LARGEST = 1e6
"""Above any quantile that is asked for: that of one degree of freedom at 99.99 % is 6,366."""


class Spread(NamedTuple):
    """How values lie around their mean.

    Attributes:
        mean: of the values.
        std: their sample standard deviation ``s``; nan of a single value.
        ci95: half the width of the mean's 95 % interval, ``t * s / sqrt(n)``, where ``t`` is the 97.5 % quantile of
            Student's t with ``n - 1`` degrees of freedom; nan of a single value.
        number: how many values there are, ``n``.

    Example:
        >>> from metalearn.experiments.student import spread
        >>> spread([96.0, 97.0, 98.0])._replace(ci95=0.0)
        Spread(mean=97.0, std=1.0, ci95=0.0, number=3)
    """

    mean: float
    std: float
    ci95: float
    number: int


def spread(values: Sequence[float]) -> Spread:
    """Mean, standard deviation and the mean's 95 % interval of values that are drawn independently.

    Student 1908, "The probable error of a mean": ``(mean - mu) / (s / sqrt(n))`` has the t distribution with ``n - 1``
    degrees of freedom where the values are normal.

    Example:
        >>> from metalearn.experiments.student import spread
        >>> spread([96.0, 97.0, 98.0]).mean
        97.0
        >>> round(spread([96.0, 97.0, 98.0]).ci95, 3)
        2.484
    """
    count = len(values)
    if count == 0:
        return Spread(math.nan, math.nan, math.nan, 0)
    mean = math.fsum(values) / count
    if count == 1:
        return Spread(mean, math.nan, math.nan, 1)
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    return Spread(mean, std, student_quantile(0.975, count - 1) * std / math.sqrt(count), count)


def student_quantile(level: float, freedom: int) -> float:
    """The value below which Student's t with ``freedom`` degrees of freedom lies with probability ``level``.

    It inverts :func:`_central_probability` by bisection, to the last bit of a double but a few.

    Example:
        >>> from metalearn.experiments.student import student_quantile
        >>> round(student_quantile(0.975, 4), 4)
        2.7764
    """
    if not 0.5 <= level < 1 or freedom < 1:
        raise ValueError(f"level is {level} and freedom is {freedom}, but they must be in [0.5, 1) and at least 1")
    low, high = 0.0, LARGEST
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if _central_probability(middle, freedom) < 2 * level - 1 else (low, middle)
    return middle


def _central_probability(t: float, freedom: int) -> float:
    """``P(-t < T < t)``: the finite sums of Abramowitz and Stegun 1964, 26.7.3 and 26.7.4, in ``theta = atan(t / sqrt(n))``."""
    theta = math.atan(t / math.sqrt(freedom))
    sine, square = math.sin(theta), math.cos(theta) ** 2
    odd = freedom % 2
    term = math.cos(theta) if odd else 1.0
    total = term if freedom > 1 else 0.0
    for number in range(2 + odd, freedom - 1, 2):
        term *= square * (number - 1) / number
        total += term
    return 2 / math.pi * (theta + sine * total) if odd else sine * total
