"""An update rule or an adapter in plain types, as a checkpoint keeps it."""

from __future__ import annotations

import dataclasses
from typing import Any

__all__ = ["describe_object", "is_ours"]

PLAIN = (type(None), bool, int, float, str)
LEFT_OUT = object()


def describe_object(described: object) -> dict[str, Any]:
    """The name of its class, and its fields in plain types where it is a dataclass.

    Another's class has its full name, so that it is never taken for one of ours. A field that no plain type holds is left out,
    since a checkpoint with it could not be read.
    """
    kind = type(described)
    name = kind.__name__ if is_ours(f"{kind.__module__}.") else f"{kind.__module__}.{kind.__qualname__}"
    fields = dataclasses.fields(described) if dataclasses.is_dataclass(described) else ()
    values = {field.name: _plain(getattr(described, field.name)) for field in fields}
    return {"class_path": name, "init_args": {name: value for name, value in values.items() if value is not LEFT_OUT}}


def is_ours(spelled: str) -> bool:
    """Whether a class that is named so may be one of this package: by its own name alone, or by a path in it."""
    return "." not in spelled or spelled.startswith("metalearn.")


def _plain(value: Any) -> Any:
    if type(value) in PLAIN:
        return value
    if getattr(value, "ndim", None) == 0:  # a number of numpy's or torch's
        return _plain(value.item())
    if isinstance(value, (list, tuple)):
        entries = [_plain(entry) for entry in value]
        if any(entry is LEFT_OUT for entry in entries):
            return LEFT_OUT
        return entries if isinstance(value, list) else tuple(entries)
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        plain = {str(key): _plain(entry) for key, entry in value.items()}
        return LEFT_OUT if any(entry is LEFT_OUT for entry in plain.values()) else plain
    return LEFT_OUT
