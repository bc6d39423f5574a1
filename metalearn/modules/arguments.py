"""Checks on the arguments of the modules: each raises one line that names the value, the constraint and the remedy."""

from __future__ import annotations

from metalearn.checks import check_choice, check_number, check_whole

__all__ = [
    "check_choice",
    "check_positive",
    "check_step_size",
    "check_steps",
]


def check_steps(name: str, value: object, most: int = 1_000_000) -> None:
    """Raise unless ``value`` is a whole number in ``1..most``."""
    check_whole(name, value, 1, most, f"use {name}=1 or more")


def check_step_size(name: str, value: object, remedy: str = "use 0.4 for Omniglot or 0.01 for miniImageNet") -> None:
    """Raise unless ``value`` is a finite number above 0."""
    check_number(name, value, remedy, above=0)


def check_positive(name: str, value: object, or_zero: bool = False) -> None:
    """Raise unless ``value`` is a finite number above 0 (or 0 itself)."""
    above, least = (None, 0.0) if or_zero else (0.0, None)
    check_number(name, value, "leave it out for its default", above=above, least=least)
