"""Checks of arguments that the data modules share."""

from __future__ import annotations

from metalearn.checks import MOST, MOST_OF_A_TASK, Count, Range, check_range, check_whole

__all__ = ["MOST_OF_A_TASK", "Count", "Range", "check_at_least", "check_range"]


def check_at_least(name: str, value: object, least: int, most: int = MOST) -> None:
    """Raise unless ``value`` is a whole number in ``least..most``."""
    check_whole(name, value, least, most)
