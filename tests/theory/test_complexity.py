"""Orders of oracle calls: by hand, against one another, and in a picture."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from matplotlib import image

from metalearn.errors import ConfigError
from metalearn.theory import complexity, complexity_table, draw_complexity
from metalearn.theory.oracle_rows import ROWS

EVERY = {"kappa": 100.0, "eps": 1e-4, "mu_x": 1e-4, "steps": 5}


def test_the_orders_of_the_thesis_by_hand() -> None:
    """With ``k = 10`` and ``eps = 0.1`` every order is a power of ten."""
    calls = {name: complexity(name, kappa=10.0, eps=0.1) for name in ("BA", "AID-BiO", "ITD-BiO", "BSA", "stocBiO")}
    powers = {
        name: [math.log10(count) for count in (row.gc_f, row.gc_g, row.jvp, row.hvp)]  # type: ignore[arg-type]
        for name, row in calls.items()
    }
    assert powers == {
        "BA": pytest.approx([5, 6.25, 5, 5.5]), "AID-BiO": pytest.approx([4, 5, 4, 4.5]),
        "ITD-BiO": pytest.approx([4, 5, 5, 5]), "BSA": pytest.approx([8, 12, 8, 8]),
        "stocBiO": pytest.approx([7, 11, 7, 8]),
    }  # fmt: skip
    assert calls["AID-BiO"].total == calls["AID-BiO"].gc_g
    assert calls["AID-BiO"].orders == {"gc_f": "k^3/eps", "gc_g": "k^4/eps", "jvp": "k^3/eps", "hvp": "k^3.5/eps"}


def test_other_settings_by_hand() -> None:
    accelerated = complexity("acc_bio_bg", kappa=10.0, eps=0.1, mu_x=0.01)
    assert accelerated.total == pytest.approx(1000)
    assert (accelerated.gc_f, accelerated.hvp) == (None, None)
    maml = complexity("MAML, resampling", kappa=1.0, eps=0.1, steps=3)
    assert (maml.gc_g, maml.hvp, maml.jvp) == (pytest.approx(300), pytest.approx(30), None)
    least = [complexity("lower bound, convex, 2021", kappa=1e4, eps=eps).total for eps in (0.01, 1e-4)]
    assert least == [pytest.approx(1e4), pytest.approx(1e6)]  # 1/eps^2, then k/sqrt(eps)
    first_order = complexity("F2BA", kappa=10.0, eps=0.1)
    assert (first_order.jvp, first_order.hvp) == (0, 0)
    unknown = complexity("VRBO", kappa=10.0, eps=0.1)
    assert (unknown.total, unknown.orders["total"]) == (None, "1/eps^1.5, k unknown")


def test_no_upper_bound_lies_below_a_lower_one() -> None:
    """Of one setting, where the constants that are left out do not matter; RAHGD is for smoother functions."""
    for setting in {row.setting for row in ROWS}:
        rows = [complexity(row.algorithm, **EVERY) for row in ROWS if row.setting == setting]  # type: ignore[arg-type]
        totals = {
            bound: [row.total for row in rows if row.bound == bound and row.total and row.algorithm != "RAHGD"]
            for bound in ("upper", "lower")
        }
        assert max(totals["lower"], default=0) <= min(totals["upper"])


def test_every_row_is_read_by_its_name() -> None:
    for row in ROWS:
        calls = complexity(row.algorithm.upper().replace(" ", ""), **EVERY)  # type: ignore[arg-type]
        assert calls.algorithm == row.algorithm
        assert calls.as_dict()["source"]
    assert complexity("aid_bio", **EVERY) == complexity("AID-BiO", **EVERY)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "changed", "line"),
    [
        ("AID-Bi", {}, r"algorithm is 'AID-Bi', but it must be a name in complexity_table\(\), .*; use 'AID-BiO'"),
        (3, {}, r"algorithm is 3, but it must be a name in .*; use 'BA'"),
        ("BA", {"kappa": 0.5}, r"complexity\(kappa=0.5\), but it must be a finite number of at least 1; use 10.0"),
        ("BA", {"eps": 0.0}, r"complexity\(eps=0.0\), but it must be a finite number above 0; use 0.01"),
        ("BA", {"kappa": math.nan}, r"complexity\(kappa=nan\), but"),
        ("AccBiO", {"mu_x": 2.0}, r"complexity\(mu_x=2.0\), but .* at most 1; use 0.01"),
        ("AccBiO", {"mu_x": None}, r"complexity\('AccBiO'\) has no mu_x, but AccBiO needs it; give mu_x=0.01"),
        ("MAML, finite sum", {"steps": None}, r"has no steps, but .* needs it; give steps=5"),
        ("BA", {"steps": 0}, r"complexity\(steps=0\), but it must be a whole number, at least 1; use steps=1"),
    ],
)
def test_wrong_arguments_are_one_line(name: Any, changed: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError, match=line) as caught:
        complexity(name, **{**EVERY, **changed})
    assert "\n" not in str(caught.value)


def test_the_table_has_formulas_and_values() -> None:
    plain, valued = str(complexity_table()), str(complexity_table(kappa=10.0, eps=0.1))
    assert len(plain.splitlines()) == len(ROWS) + 2
    assert "| AID-BiO | nonconvex | upper | k^3/eps | k^4/eps | k^3/eps | k^3.5/eps |" in plain
    assert "| AID-BiO | nonconvex | upper | 1e+04 | 1e+05 | 1e+04 | 3.16e+04 |" in valued
    assert "| k^2/mu_x^0.5 | recalled |" in valued
    with pytest.raises(ConfigError, match="complexity_table"):
        complexity_table(kappa=0.0)


def test_the_picture(tmp_path: Path) -> None:
    file = draw_complexity(tmp_path / "bounds.png", kappa=5.0)
    assert image.imread(file).shape[1] > 1000
    for arguments, line in (
        ({"kappas": (10.0, 2.0)}, r"kappas is \(10.0, 2.0\), but the first must be the smaller"),
        ({"kappas": (0.5, 2.0)}, "kappas is 0.5, but"),
        ({"accuracies": (0.0, 0.1)}, "accuracies is 0.0, but"),
        ({"accuracies": 0.1}, "accuracies is 0.1, but"),
        ({"eps": -1.0}, r"draw_complexity\(eps=-1.0\), but"),
    ):
        with pytest.raises(ConfigError, match=line):
            draw_complexity(tmp_path / "other.png", **arguments)  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["bounds.png"]
