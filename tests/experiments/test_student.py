"""The interval of a mean of few values: quantiles against tables, and coverage of the mean."""

from __future__ import annotations

import math

import numpy as np
import pytest

from metalearn.experiments.student import spread, student_quantile


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [(1, 12.7062047362), (2, 4.3026527297), (3, 3.1824463053), (4, 2.7764451052), (5, 2.5705818356), (9, 2.2621571628),
     (10, 2.2281388520), (30, 2.0422724563), (100, 1.9839715185), (599, 1.9639322489)],
)  # fmt: skip
def test_quantiles_of_the_tables(freedom: int, quantile: float) -> None:
    assert student_quantile(0.975, freedom) == pytest.approx(quantile, rel=1e-10)


@pytest.mark.parametrize("level", [0.6, 0.95, 0.9999])
@pytest.mark.parametrize("freedom", [1, 2])
def test_closed_forms(level: float, freedom: int) -> None:
    """Student's t with one degree of freedom is Cauchy's; the one with two has a closed form as well."""
    share = 2 * level - 1
    closed = math.tan(math.pi * share / 2) if freedom == 1 else share * math.sqrt(2 / (1 - share**2))
    assert student_quantile(level, freedom) == pytest.approx(closed, rel=1e-10)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_the_interval_holds_the_mean_in_95_of_100_cases(count: int) -> None:
    rng = np.random.default_rng(0)
    draws = [spread(rng.normal(3.0, 2.0, count).tolist()) for _ in range(4000)]
    assert np.mean([abs(drawn.mean - 3.0) <= drawn.ci95 for drawn in draws]) == pytest.approx(0.95, abs=0.01)


def test_few_values() -> None:
    assert spread([]).number == 0
    assert spread([2.5])[0] == 2.5
    assert math.isnan(spread([2.5]).ci95)
    assert spread([1.0, 1.0, 1.0])[:3] == (1.0, 0.0, 0.0)
