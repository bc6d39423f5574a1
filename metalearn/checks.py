"""Checks of arguments: each raises one line that names the value, the constraint and the remedy, which is the caller's."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from difflib import SequenceMatcher
from numbers import Real
from os import PathLike
from pathlib import Path
from types import FunctionType
from typing import Any

from metalearn.errors import ConfigError

__all__ = [
    "MOST",
    "MOST_OF_A_TASK",
    "MOST_OF_A_WIDTH",
    "MOST_STEPS",
    "UNBOUNDED",
    "Count",
    "Range",
    "check_choice",
    "check_flag",
    "check_function",
    "check_kind",
    "check_number",
    "check_numbers",
    "check_range",
    "check_seed",
    "check_whole",
    "find_nearest",
    "quote_value",
    "read_path",
]

MOST = 2**31 - 1
"""The largest count that anything takes: what is above is a slip, and would only end in a lack of memory or of time."""
UNBOUNDED = 2**63 - 1
"""The largest whole number of 64 bits, for what may be as large as a user likes."""
MOST_STEPS = 1_000_000
"""Steps or iterations of one run, at most."""
MOST_OF_A_WIDTH = 4096
"""Channels, filters, or pixels of a side of an image."""
MOST_OF_A_TASK = 100_000
"""Ways, shots or queries."""
Range = tuple[int, int]
Count = int | list[int]
"""A number, or the least and the most that are drawn: ``[5, 20]``."""


def check_whole(
    name: str,
    value: Any,
    least: int | None = None,
    most: int = MOST,
    remedy: str | None = None,
    owner: str = "",
    loose: bool = False,
) -> None:
    """Raise unless a value is a whole number in ``least..most``.

    Args:
        name: of the argument.
        value: what the user gave.
        least: the least that will do; ``None`` for any.
        most: the most that will do.
        remedy: what the user can do; ``None`` for the nearest value that will do.
        owner: the class or function that takes the argument, if the line should name it.
        loose: whether ``3.0`` and a tensor of one entry will do as well.

    Raises:
        ConfigError: it is none.
    """
    number = _read_number(value, loose)
    is_whole = isinstance(number, int) or (loose and number is not None and number.is_integer())
    too_large = is_whole and number is not None and number > most
    too_small = number is not None and least is not None and number < least
    if not is_whole or too_large or too_small:
        bound = f", at most {most}" if too_large else "" if least is None else f", at least {least}"
        default = "lower it" if too_large else f"use {name}={least or 0}"
        raise ConfigError(f"{_assign(name, value, owner)}, but it must be a whole number{bound}; {remedy or default}")


def check_seed(name: str, value: object) -> None:
    """Raise unless a value is a whole number in ``0..2^63 - 1``."""
    check_whole(name, value, 0, UNBOUNDED)


def check_number(
    name: str,
    value: Any,
    remedy: str,
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
    finite: bool = True,
    owner: str = "",
    loose: bool = False,
) -> None:
    """Raise unless a value is a number between the bounds; nan is none.

    Args:
        name: of the argument.
        value: what the user gave.
        remedy: what the user can do.
        above: it must be larger.
        least: it must be as large.
        below: it must be smaller.
        most: it must be as small.
        finite: whether infinity is refused.
        owner: the class or function that takes the argument, if the line should name it.
        loose: whether a tensor of one entry will do as well.

    Raises:
        ConfigError: it is none, or outside.
    """
    number = _read_number(value, loose)
    if isinstance(number, int) and abs(number) > 10**300:
        number = math.inf
    fits = number is not None and not math.isnan(number) and not (finite and math.isinf(number))
    if fits and number is not None:
        fits = (above is None or number > above) and (least is None or number >= least)
        fits = fits and (below is None or number < below) and (most is None or number <= most)
    if not fits:
        bounds = (("above", above), ("of at least", least), ("below", below), ("at most", most))
        limits = " and ".join(f"{words} {bound:g}" for words, bound in bounds if bound is not None)
        kind = "a finite number" if finite else "a number"
        raise ConfigError(f"{_assign(name, value, owner)}, but it must be {f'{kind} {limits}'.strip()}; {remedy}")


def check_flag(name: str, value: Any, owner: str = "") -> None:
    """Raise unless a value is ``True`` or ``False``; 1 and 0 will do, a text will not, since every text is true."""
    if isinstance(value, str) or _is_tensor(value) or not any(value is flag or value == flag for flag in (True, False)):
        raise ConfigError(
            f"{_assign(name, value, owner)}, but it must be True or False; use {name}=True or {name}=False"
        )


def check_numbers(name: str, value: Any, remedy: str, count: int | None = None) -> None:
    """Raise unless a value is a list or tuple, and of that length; its entries are checked one by one by the caller."""
    if not isinstance(value, (list, tuple)) or (count is not None and len(value) != count):
        length = "a list of numbers" if count is None else f"a list of {count} numbers"
        raise ConfigError(f"{name} is {quote_value(value)}, but it must be {length}; {remedy}")


def check_choice(name: str, value: object, choices: Sequence[str], owner: str = "") -> None:
    """Raise unless a value is one of ``choices``."""
    if not isinstance(value, str) or value not in choices:
        near = find_nearest(str(value), choices, 1) or list(choices[:1])
        raise ConfigError(f"{_assign(name, value, owner)}, but it must be one of {', '.join(choices)}; use {near[0]!r}")


def check_kind(name: str, value: object, kind: type, remedy: str) -> None:
    """Raise unless a value is of a class."""
    if not isinstance(value, kind):
        raise ConfigError(f"{name} is {quote_value(value)}, but it must be {_add_article(kind.__name__)}; {remedy}")


def check_function(name: str, value: object, remedy: str, what: str = "a function", owner: str = "") -> None:
    """Raise unless a value can be called, and is no class."""
    if not callable(value) or isinstance(value, type):
        raise ConfigError(f"{_assign(name, value, owner)}, but it must be {what}; {remedy}")


def check_range(name: str, value: object, least: int, most: int = MOST_OF_A_TASK) -> Range:
    """The least and the most of a number or of a pair.

    Raises:
        ConfigError: it is neither, or out of range.
    """
    if not isinstance(value, (list, tuple)):
        check_whole(name, value, least, most)
        assert isinstance(value, int)
        return value, value
    whole = len(value) == 2 and all(isinstance(end, int) and not isinstance(end, bool) for end in value)
    if not whole or not least <= value[0] <= value[1] <= most:
        raise ConfigError(
            f"{name} is {quote_value(list(value))}, but a range must be two whole numbers, the least (at least {least}) and the "
            f"most (at most {most}); use {name}=[{max(least, 1)}, {max(least, 1) + 5}]"
        )
    return value[0], value[1]


def read_path(name: str, value: Any, remedy: str) -> Path:
    """The path that a value is.

    Raises:
        ConfigError: it is none.
    """
    if not isinstance(value, (str, PathLike)):
        raise ConfigError(f"{name} is {quote_value(value)}, but it must be a path; {remedy}")
    return Path(value)


def find_nearest(word: str, known: Sequence[str], count: int = 3) -> list[str]:
    """The names most like ``word``, or like how they begin; none where nothing is."""
    plain = word.lower()
    scored = []
    for position, name in enumerate(dict.fromkeys(known)):
        other = name.lower()
        score = max(SequenceMatcher(None, plain, part).ratio() for part in (other, other[: len(plain) + 1]))
        if sorted(plain) == sorted(other):  # letters that changed places
            score = max(score, 0.9)
        if score >= 0.7:
            scored.append((-score, abs(len(name) - len(word)), position, name))
    return [name for *_, name in sorted(scored)[:count]]


def quote_value(value: Any) -> str:
    """A value in a few words of one line."""
    if _is_tensor(value):
        return f"a tensor of shape {list(value.shape)}"
    if isinstance(value, FunctionType):
        return f"the function {value.__name__}"
    if isinstance(value, int) and abs(value) >= 10**30:
        return "a number of more than 30 digits"
    text = repr(value)
    if isinstance(value, (str, bytes, int, float, type)) or (
        isinstance(value, (list, tuple, dict)) and "\n" not in text
    ):
        return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"
    text = " ".join(text.split())
    return text if len(text) <= 60 else _add_article(type(value).__name__)


def _assign(name: str, value: object, owner: str) -> str:
    return f"{owner}({name}={quote_value(value)})" if owner else f"{name} is {quote_value(value)}"


def _is_tensor(value: object) -> bool:
    """Without loading torch, which commands that only read do without: where it is not loaded, nothing is a tensor."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _add_article(name: str) -> str:
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"


def _read_number(value: Any, loose: bool) -> float | int | None:
    """The number that a value is, or ``None``: a plain one, or where it is loose any real one and a tensor of one."""
    if isinstance(value, bool):
        return None
    if isinstance(value, (int, float)):
        return value
    if loose and _is_tensor(value) and value.numel() == 1 and not value.is_complex():
        return value.item()
    return float(value) if loose and isinstance(value, Real) else None
