"""What no honest archive has: the checks that every entry passes before anything of it is read."""

from __future__ import annotations

from pathlib import Path, PureWindowsPath
from typing import NamedTuple

from metalearn.errors import DataError

__all__ = ["RawEntry", "check_name", "unsafe_entry"]


class RawEntry(NamedTuple):
    """A file of an archive, as its reader finds it.

    Attributes:
        name: the path in the archive, as it is written there.
        size: bytes, as claimed.
        signs: what tells it from another version of the same size.
        key: its number for the reader.
    """

    name: str
    size: int
    signs: tuple[int, ...]
    key: int


def check_name(path: Path, name: str) -> None:
    """Raise a DataError unless an entry's name is a relative path that stays within the archive."""
    if not name.isprintable():
        raise unsafe_entry(path, name, "has a name that cannot be printed")
    if "\\" in name or name.startswith("/") or PureWindowsPath(name).drive:
        raise unsafe_entry(path, name, "is no relative path with forward slashes")
    if ".." in name.split("/"):
        raise unsafe_entry(path, name, "leads out of the archive")


def unsafe_entry(path: Path, name: str, why: str) -> DataError:
    """The error for an entry that no honest archive has."""
    return DataError(f"archive {path}: entry {name!r} {why}, so the archive is not trusted; remove the entry, or fetch the "
                     "archive from its authors")  # fmt: skip
