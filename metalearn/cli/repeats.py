"""Options that stand on a command line more than once."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

__all__ = ["drop_repeats", "warn_of_repeats"]

log = logging.getLogger(__name__)

MANY = ("--config", "-c")
"""Options that may stand there many times, as those that end in ``+`` may."""


def drop_repeats(words: Sequence[str]) -> list[str]:
    """The words, in which each option stands once: where it stood first, with the value that stood last.

    Says of each that had another value before which counts.
    """
    warn_of_repeats(words)
    last = {flag: value for flag, value in _pairs(words) if _is_single(flag) and value is not None}
    kept: list[str] = []
    for flag, value in _pairs(words):
        if value is None or not _is_single(flag):
            kept += [flag] if value is None else [flag, value]
        elif flag in last:
            kept.append(f"{flag}={last.pop(flag)}")
    return kept


def warn_of_repeats(words: Sequence[str]) -> None:
    """Say of each option that has two values which of them counts."""
    values: dict[str, list[str]] = {}
    for flag, value in _pairs(words):
        if value is not None and _is_single(flag):
            values.setdefault(flag, []).append(value)
    for flag, of_flag in values.items():
        if len(set(of_flag)) > 1:
            log.warning("%s is given twice; %r counts, which stands last", flag, of_flag[-1])


def _pairs(words: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Each option with its value, and each other word with ``None``."""
    waiting = list(words)
    while waiting:
        flag, equals, value = waiting.pop(0).partition("=")
        if not flag.startswith("-"):
            yield flag + equals + value, None
        elif equals:
            yield flag, value
        else:
            yield flag, waiting.pop(0) if waiting and not waiting[0].startswith("--") else None


def _is_single(flag: str) -> bool:
    return flag.startswith("--") and flag not in MANY and not flag.endswith("+")
