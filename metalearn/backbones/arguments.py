"""Checks of the networks' sizes."""

from __future__ import annotations

__all__ = ["check_size"]


def check_size(name: str, value: object, least: int = 1, most: int = 4096) -> None:
    """Raise unless ``value`` is a whole number in ``least..most``.

    Raises:
        ValueError: it is not; the line names the value, the range and a remedy.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        shown = repr(value) if len(repr(value)) < 40 else f"{repr(value)[:30]}..."
        raise ValueError(
            f"{name} is {shown}, but it must be a whole number in {least}..{most}; use {name}={min(max(least, 1), most)} or more"
        )
