"""Checks of arguments that the data modules share."""

from __future__ import annotations

from metalearn.errors import ConfigError

__all__ = ["Count", "Range", "check_at_least", "check_range"]

Range = tuple[int, int]
Count = int | list[int]
"""A number, or the least and the most that are drawn: ``[5, 20]``."""


def check_at_least(name: str, value: object, least: int) -> None:
    """Raise unless ``value`` is a whole number of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(
            f"{name} is {value!r}, but it must be a whole number, at least {least}; use {name}={max(least, 1)}"
        )


def check_range(name: str, value: object, least: int) -> Range:
    """The least and the most of a number or of a pair.

    Raises:
        ConfigError: it is neither, or out of range.
    """
    if not isinstance(value, (list, tuple)):
        check_at_least(name, value, least)
        assert isinstance(value, int)
        return value, value
    whole = len(value) == 2 and all(isinstance(end, int) and not isinstance(end, bool) for end in value)
    if not whole or not least <= value[0] <= value[1]:
        raise ConfigError(
            f"{name} is {list(value)!r}, but a range must be two whole numbers, the least (at least {least}) and the most; use "
            f"{name}=[{max(least, 1)}, {max(least, 1) + 5}]"
        )
    return value[0], value[1]
