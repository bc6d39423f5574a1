"""The options of a configuration by the names that the command line has for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["flatten_options"]


def flatten_options(options: Any, name: str = "") -> dict[str, Any]:
    """Nested options by their dotted names.

    Example:
        >>> from metalearn.experiments.options import flatten_options
        >>> flatten_options({"model": {"class_path": "metalearn.MAML", "init_args": {"inner_steps": 5}}})
        {'model.class_path': 'metalearn.MAML', 'model.inner_steps': 5}
    """
    if isinstance(options, Mapping) and options:
        parts = {key: part for key, part in options.items() if key != "init_args"}
        inner = options.get("init_args")
        parts |= inner if isinstance(inner, Mapping) else {}
        flat: dict[str, Any] = {}
        for part, entry in parts.items():
            flat |= flatten_options(entry, f"{name}.{part}" if name else str(part))
        return flat
    if isinstance(options, list) and any(isinstance(entry, Mapping) for entry in options):
        return flatten_options(dict(enumerate(options)), name)
    return {name: options}
