"""The names that a checkpoint holds, of folders and of classes, and how messages about it end."""

from __future__ import annotations

import sys
from typing import Any

from metalearn.carried.classes import short
from metalearn.errors import CheckpointError

__all__ = ["ADD_CONFIG", "USE_ANOTHER", "check_name", "class_path", "is_name"]

ADD_CONFIG = "add --config with the run's config.yaml"
USE_ANOTHER = "use a checkpoint as a run wrote it, or " + ADD_CONFIG


def is_name(name: object) -> bool:
    """Whether it names one folder and is no path: up to 200 bytes that can be printed, without separators."""
    if not isinstance(name, str) or not name.isprintable() or len(name.encode()) > 200:
        return False
    return bool(name.strip()) and name not in (".", "..") and not set(name) & set("/\\")


def check_name(name: object, what: str) -> str:
    """A name that is no path.

    Raises:
        CheckpointError: it is anything else.
    """
    if not isinstance(name, str) or not is_name(name):
        raise CheckpointError(
            f"{what} is {short(name)}, but it names one folder, with letters and digits and without /; {USE_ANOTHER}"
        )
    return name


def class_path(kind: type[Any]) -> str:
    """The name of a class that stays when its file moves: in the first package above the file that offers the class."""
    parts = kind.__module__.split(".")
    packages = [".".join(parts[:depth]) for depth in range(1, len(parts))]
    public = (name for name in packages if vars(sys.modules.get(name, object)).get(kind.__qualname__) is kind)
    return f"{next(public, kind.__module__)}.{kind.__qualname__}"
