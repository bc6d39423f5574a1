"""Checks of constants: each must be in its range, and none may contradict another."""

from __future__ import annotations

from metalearn.bilevel.checks import check_order
from metalearn.checks import check_number
from metalearn.errors import ConfigError

__all__ = ["check_least_zero", "check_positive", "read_kappa"]


def check_positive(owner: str, **constants: float) -> None:
    """Raise a ConfigError unless every constant is a finite number above 0."""
    for name, value in constants.items():
        check_number(name, value, "use 1.0", above=0, owner=owner, loose=True)


def check_least_zero(owner: str, **constants: float) -> None:
    """Raise a ConfigError unless every constant is a finite number of at least 0."""
    for name, value in constants.items():
        check_number(name, value, "use 1.0", least=0, owner=owner, loose=True)


def read_kappa(owner: str, kappa: float | None, mu: float | None, L: float | None) -> float:
    """The condition number: as it stands, or ``L/mu``.

    Raises:
        ConfigError: neither is complete, or they contradict one another.
    """
    if (mu is None) != (L is None):
        known, missing = ("mu", "L") if L is None else ("L", "mu")
        raise ConfigError(
            f"{owner} has {known} but no {missing}, but kappa = L/mu needs both; give {missing}, or kappa"
        )
    if kappa is not None:
        check_number("kappa", kappa, "use 10.0", least=1, owner=owner, loose=True)
    if mu is None or L is None:
        if kappa is None:
            raise ConfigError(f"{owner} has no condition number, but it needs one; give kappa=10.0, or mu and L")
        return float(kappa)
    check_order(owner, mu, L)
    if kappa is not None and abs(kappa - L / mu) > 1e-6 * kappa:
        raise ConfigError(f"{owner} has kappa={kappa:g}, but L/mu = {L:g}/{mu:g} is {L / mu:g}; leave kappa out")
    return max(1.0, L / mu)
