"""Folders, and archives that are looked through as folders are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from metalearn.datamodules.sources.archives import ARCHIVES, COMPRESSED, list_archive
from metalearn.datamodules.sources.members import Member, map_file
from metalearn.errors import DataError

__all__ = ["Place", "look_in"]


class Place(Protocol):
    """A folder on the disk or in an archive.

    Attributes:
        name: how messages call it.
    """

    name: str

    def folders(self) -> dict[str, Place]:
        """The folders in it by name, sorted; hidden ones are left out."""

    def files(self) -> dict[str, Member]:
        """The files in it by name, sorted; hidden ones are left out."""


class _File:
    """A file by itself, as the source of its bytes."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, key: int) -> bytes:
        return self._path.read_bytes()

    def map(self, key: int) -> memoryview:
        return map_file(self._path)


class _Folder:
    def __init__(self, path: Path) -> None:
        self.name, self._path = str(path), path

    def folders(self) -> dict[str, Place]:
        with os.scandir(self._path) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
        return {name: _Folder(self._path / name) for name in names}

    def files(self) -> dict[str, Member]:
        with os.scandir(self._path) as entries:
            kept = sorted(
                (entry.name, entry) for entry in entries if entry.is_file() and not entry.name.startswith(".")
            )
        members = {}
        for name, entry in kept:
            size, written = entry.stat().st_size, entry.stat().st_mtime_ns
            members[name] = Member(entry.path, size, (size, written), _File(Path(entry.path)), 0)
        return members


class _Archived:
    def __init__(self, name: str) -> None:
        self.name = name
        self._folders: dict[str, _Archived] = {}
        self._files: dict[str, Member] = {}

    @classmethod
    def open(cls, path: Path) -> _Archived:
        top = cls(str(path))
        for inner, member in list_archive(path).items():
            *above, name = inner.split("/")
            place = top
            for folder in above:
                place = place._folders.setdefault(folder, cls(f"{place.name}/{folder}"))
            place._files[name] = member
        return top

    def folders(self) -> dict[str, Place]:
        return dict(sorted(self._folders.items()))

    def files(self) -> dict[str, Member]:
        return dict(sorted(self._files.items()))


def look_in(root: Path) -> Iterator[Place]:
    """Where a data set may be: ``root``, its only folder, the only archive in it or ``root`` itself as one, and its only folder.

    Raises:
        DataError: ``root`` is missing, or an archive cannot be read; only when the search comes to it.
    """
    if root.is_file():
        yield from _with_only_folder(_Archived.open(root))
        return
    if not root.is_dir():
        raise DataError(f"root {root} does not exist; set data.root to the folder or archive of the data set")
    yield from _with_only_folder(_Folder(root))
    files = [path for path in sorted(root.iterdir()) if path.is_file() and not path.name.startswith(".")]
    for suffixes in (ARCHIVES, COMPRESSED):
        archives = [path for path in files if path.name.lower().endswith(suffixes)]
        if len(archives) == 1:
            yield from _with_only_folder(_Archived.open(archives[0]))
            return


def _with_only_folder(place: Place) -> Iterator[Place]:
    yield place
    folders = place.folders()
    if len(folders) == 1:
        yield from folders.values()
