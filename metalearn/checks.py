"""Checks of arguments: each raises one line that names the value, the constraint and the remedy."""

from __future__ import annotations

import errno
import math
from collections.abc import Sequence
from difflib import SequenceMatcher

from metalearn.errors import ConfigError

__all__ = ["MOST", "check_choice", "check_number", "check_seed", "check_whole", "nearest", "quote_value", "writable"]

MOST = 2**31 - 1
"""The largest count that anything takes: what is above is a slip, and would only end in a lack of memory or of time."""


FULL = {getattr(errno, name, None) for name in ("ENOSPC", "EDQUOT", "EFBIG")}
"""What the system says where more space would do."""


def writable(error: OSError) -> str:
    """What a user can do about a file that cannot be written."""
    return "free space there" if error.errno in FULL else "make its folder one that can be written"


def check_whole(name: str, value: object, least: int, most: int = MOST, remedy: str | None = None) -> None:
    """Raise unless ``value`` is a whole number in ``least..most``."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        above = isinstance(value, int) and value > most
        bound = f"at most {most}" if above else f"at least {least}"
        nearest_one = most if above else least
        raise ConfigError(
            f"{name} is {quote_value(value)}, but it must be a whole number, {bound}; {remedy or f'use {name}={nearest_one}'}"
        )


def check_seed(name: str, value: object) -> None:
    """Raise unless ``value`` is a whole number in ``0..2^63 - 1``."""
    check_whole(name, value, 0, 2**63 - 1)


def check_number(
    name: str,
    value: object,
    least: float = 0.0,
    or_least: bool = False,
    most: float = math.inf,
    remedy: str | None = None,
) -> None:
    """Raise unless ``value`` is a finite number above ``least`` (or ``least`` itself) and at most ``most``."""
    fits = False
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= 1e300:
        fits = math.isfinite(value) and (value > least or (or_least and value == least)) and value <= most
    if not fits:
        bound = f"of at least {least:g}" if or_least else f"above {least:g}"
        upper = f" and at most {most:g}" if math.isfinite(most) else ""
        raise ConfigError(
            f"{name} is {quote_value(value)}, but it must be a finite number {bound}{upper}; "
            f"{remedy or 'leave it out for its default'}"
        )


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise unless ``value`` is one of ``choices``."""
    if value not in choices:
        near = nearest(str(value), choices, 1) or list(choices[:1])
        raise ConfigError(
            f"{name} is {quote_value(value)}, but it must be one of {', '.join(choices)}; use {near[0]!r}"
        )


def nearest(word: str, known: Sequence[str], count: int = 3) -> list[str]:
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


def quote_value(value: object) -> str:
    """``repr`` of a value, shortened."""
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**30 else "a number of more than 30 digits"
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"
