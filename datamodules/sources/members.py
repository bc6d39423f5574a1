"""A file in a folder or in an archive, read where it lies."""

from __future__ import annotations

import io
import mmap
from pathlib import Path
from typing import IO, NamedTuple, Protocol

from metalearn.errors import DataError

__all__ = ["LARGEST_READ", "Member", "Source", "map_file"]

LARGEST_READ = 64 << 20
"""Bytes of a file that is read whole: an image, a table."""


class Source(Protocol):
    """Where a member's bytes come from."""

    def read(self, key: int) -> bytes: ...
    def map(self, key: int) -> memoryview: ...


class Member(NamedTuple):
    """A file, in a folder or in an archive.

    Attributes:
        name: how messages call it.
        size: bytes, as claimed.
        stamp: what tells it from another version of itself: size, and checksum or time of writing.
        source: where its bytes come from.
        key: its number there.
    """

    name: str
    size: int
    stamp: tuple[int, ...]
    source: Source
    key: int

    def open(self) -> IO[bytes]:
        """The file in memory; safe in many threads at once.

        Raises:
            DataError: it is larger than any image or table, or damaged.
        """
        if self.size > LARGEST_READ:
            raise DataError(
                f"file {self.name} has {self.size} bytes, but an image or a table has at most {LARGEST_READ}; remove it"
            )
        return io.BytesIO(self.source.read(self.key))

    def map(self) -> memoryview:
        """The file's bytes, mapped where they lie on the disk as they are.

        Raises:
            DataError: it is damaged, or packed and too large to be unpacked into memory.
        """
        return self.source.map(self.key)


def map_file(path: Path, offset: int = 0, size: int | None = None) -> memoryview:
    """A part of a file, mapped: pages come in when they are looked at, and go when memory is short."""
    size = path.stat().st_size - offset if size is None else size
    if size == 0:
        return memoryview(b"")
    if offset + size > path.stat().st_size:
        raise DataError(f"file {path} ends before byte {offset + size}; it is truncated: fetch it again")
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))[offset : offset + size]
