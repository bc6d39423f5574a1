"""Checks of arguments that the data modules share."""

from __future__ import annotations

from metalearn.checks import MOST, check_whole, quote_value
from metalearn.errors import ConfigError

__all__ = ["MOST_OF_A_TASK", "Count", "Range", "check_at_least", "check_range"]

Range = tuple[int, int]
Count = int | list[int]
"""A number, or the least and the most that are drawn: ``[5, 20]``."""
MOST_OF_A_TASK = 100_000
"""Ways, shots or queries."""


def check_at_least(name: str, value: object, least: int, most: int = MOST) -> None:
    """Raise unless ``value`` is a whole number in ``least..most``."""
    check_whole(name, value, least, most)


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
