"""The update rule of an inner loop, as a user names it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from metalearn.compat.higher import HigherRule
from metalearn.inner import UpdateRule, get_rule

__all__ = ["find_rule"]


def find_rule(rule: str | UpdateRule | Mapping[str, Any]) -> UpdateRule:
    """The update rule of a name, of a description, or of a class of ``torch.optim`` by its full name."""
    if isinstance(rule, str) and rule.startswith("torch.optim."):
        return HigherRule(rule)
    return get_rule(rule)
