"""The family of argument checks at the bounds, and how values are quoted."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metalearn.checks import (
    check_choice,
    check_flag,
    check_function,
    check_kind,
    check_number,
    check_numbers,
    check_range,
    check_seed,
    check_whole,
    find_nearest,
    quote_value,
    read_path,
)
from metalearn.errors import ConfigError

NUMBER = partial(check_number, remedy="use 1.0")
LOOSE = partial(check_whole, least=1, loose=True)
HUGE = 10**400


@pytest.mark.parametrize(
    ("check", "fits", "refused"),
    [
        (partial(check_whole, least=1, most=5), [1, 5], [0, 6, 1.0, True, "1", None, math.nan, HUGE, torch.tensor(2)]),
        (check_whole, [-7, 0], [0.5, "x", 2**31]),
        (LOOSE, [1, 3.0, torch.tensor(2), np.int64(4), np.float32(5)], [0, 2.5, True, torch.zeros(2), math.inf, math.nan]),
        (check_seed, [0, 2**63 - 1], [-1, 2**63]),
        (partial(NUMBER, above=0), [1e-300, 1], [0, -0.0, math.nan, math.inf, -1, HUGE, "1", True, torch.tensor(1.0)]),
        (partial(NUMBER, least=0, below=1), [0, 0.999], [1, -1e-9]),
        (partial(NUMBER, above=0, most=1), [1, 0.5], [1.0001, 0]),
        (partial(NUMBER, finite=False), [math.inf, -math.inf, HUGE], [math.nan, None]),
        (partial(NUMBER, above=0, loose=True), [torch.tensor(0.5), np.float32(1)], [torch.ones(2), torch.tensor(1j), True]),
        (partial(check_choice, choices=["cg", "itd"]), ["cg"], ["cgs", 3, None, ["cg"]]),
        (check_flag, [True, False, 0, 1, np.True_], ["no", "True", None, 2, torch.tensor(True)]),
        (partial(check_kind, kind=dict, remedy="use {}"), [{}], [[], None]),
        (partial(check_function, remedy="write one"), [math.sin, lambda: 0], [int, 3, None]),
        (partial(check_numbers, remedy="use [1, 2]", count=2), [[1, 2], (1, 2)], [[1], 3, None, "ab"]),
        (partial(check_range, least=2), [2, [2, 2], (2, 9)], [1, [1, 5], [5, 2], [2], [2, 3, 4], [2.0, 3], [True, 3], "2"]),
        (partial(read_path, remedy="give one"), ["x", Path("x")], [3, None]),
    ],
)  # fmt: skip
def test_what_fits_and_what_is_refused(check: Any, fits: list[Any], refused: list[Any]) -> None:
    for value in fits:
        check("name", value)
    for value in refused:
        with pytest.raises(ConfigError, match=r"^name is [^\n]*, but [^\n]*; \S[^\n]*$"):
            check("name", value)


@pytest.mark.parametrize(
    ("check", "line"),
    [
        (lambda: check_whole("ways", 0, 2), "ways is 0, but it must be a whole number, at least 2; use ways=2"),
        (lambda: check_whole("ways", 9, 2, 5), "ways is 9, but it must be a whole number, at most 5; lower it"),
        (lambda: check_whole("dim", "x", owner="Norm"), "Norm(dim='x'), but it must be a whole number; use dim=0"),
        (lambda: check_number("lr", -1, "use 0.1", above=0, owner="BiO"),
         "BiO(lr=-1), but it must be a finite number above 0; use 0.1"),
        (lambda: check_number("m", 1, "use 0.9", least=0, below=1),
         "m is 1, but it must be a finite number of at least 0 and below 1; use 0.9"),
        (lambda: check_number("x", None, "use 1", finite=False), "x is None, but it must be a number; use 1"),
        (lambda: check_choice("solver", "nomal_cg", ["cg", "normal_cg"]),
         "solver is 'nomal_cg', but it must be one of cg, normal_cg; use 'normal_cg'"),
        (lambda: check_flag("kernels", "no"), "kernels is 'no', but it must be True or False; use kernels=True or kernels=False"),
    ],
)  # fmt: skip
def test_the_line_is_whole(check: Any, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check()
    assert str(caught.value) == line


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (torch.zeros(2, 3), "a tensor of shape [2, 3]"),
        (find_nearest, "the function find_nearest"),
        (10**30, "a number of more than 30 digits"),
        ("a" * 100, f"'{'a' * 59}... (102 characters)"),
        ((torch.zeros(3, 3), torch.zeros(3, 3)), "a tuple"),
        (torch.nn.Sequential(*[torch.nn.Linear(2, 2)] * 3), "a Sequential"),
        ("two\nlines", "'two\\nlines'"),
    ],
)
def test_values_are_quoted_in_one_line(value: Any, text: str) -> None:
    assert quote_value(value) == text


def test_slips_are_recognised() -> None:
    assert find_nearest("adma", ["sgd", "adam", "adamw"], 1) == ["adam"]
    assert find_nearest("zzz", ["sgd", "adam"]) == []
