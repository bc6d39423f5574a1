"""Tar archives: plain ones are read in any order, compressed ones in one pass."""

from __future__ import annotations

import tarfile
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

from metalearn.datamodules.sources.entries import RawEntry, check_name, unsafe_entry
from metalearn.datamodules.sources.members import map_file
from metalearn.errors import DataError

__all__ = ["TarReader", "stream_tar"]


class TarReader:
    """Reads the entries of a plain tar by their numbers, which :meth:`entries` gives.

    Raises:
        DataError: an entry leads out of the archive, is no plain file, or claims more than the archive has.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._lock, self._file = path, threading.Lock(), path.open("rb")
        weakref.finalize(self, self._file.close)
        self._places: list[tuple[int, int]] = []

    def entries(self) -> Iterator[RawEntry]:
        """The files of the archive."""
        status = self._path.stat()
        with tarfile.open(self._path, "r:") as archive:
            for info in _iterate_files(self._path, archive):
                if info.offset_data + info.size > status.st_size:
                    raise DataError(
                        f"archive {self._path}: entry {info.name} claims {info.size} bytes, more than the archive has; it is "
                        "truncated: fetch it again"
                    )
                self._places.append((info.offset_data, info.size))
                signs = (int(info.mtime), info.offset_data, status.st_mtime_ns)  # a tar has no checksums of contents
                yield RawEntry(info.name, info.size, signs, len(self._places) - 1)

    def read(self, key: int) -> bytes:
        """The bytes of an entry."""
        offset, size = self._places[key]
        with self._lock:
            self._file.seek(offset)
            data = self._file.read(size)
        if len(data) != size:
            raise DataError(f"archive {self._path} has shrunk while it was read; fetch it again")
        return data

    def map(self, key: int) -> memoryview:
        """The bytes of an entry, mapped."""
        return map_file(self._path, *self._places[key])


def stream_tar(path: Path, largest: int, what: str) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the files of a tar, compressed or not, in one pass.

    Args:
        path: the archive.
        largest: bytes that an entry may have.
        what: what an entry is, for the message where one is larger.

    Raises:
        DataError: an entry leads out of the archive, is no plain file, claims too much, or is truncated.
    """
    with tarfile.open(path, "r|*") as archive:
        for info in _iterate_files(path, archive):
            if info.size > largest:
                raise unsafe_entry(path, info.name, f"claims {info.size} bytes, more than any {what}")
            file = archive.extractfile(info)
            assert file is not None
            data = file.read(info.size)
            if len(data) != info.size:
                raise DataError(f"archive {path}: entry {info.name} is truncated; fetch the archive again")
            yield info.name, data


def _iterate_files(path: Path, archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The files of a tar, each of them checked; its folders are passed over."""
    for info in archive:
        check_name(path, info.name)
        if info.isdir():
            continue
        if not info.isreg() or info.issparse():
            raise unsafe_entry(path, info.name, "is a link or a device")
        yield info
