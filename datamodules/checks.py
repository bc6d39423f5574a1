"""Checks of arguments that the data modules share."""

from __future__ import annotations

from metalearn.errors import ConfigError

__all__ = ["check_at_least"]


def check_at_least(name: str, value: object, least: int) -> None:
    """Raise unless ``value`` is a whole number of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(
            f"{name} is {value!r}, but it must be a whole number, at least {least}; use {name}={max(least, 1)}"
        )
