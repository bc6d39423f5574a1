"""Zip archives: their directory is checked whole, then entries are read in any order, in many threads."""

from __future__ import annotations

import stat
import struct
import threading
import weakref
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from metalearn.datamodules.sources.entries import RawEntry, check_name, unsafe_entry
from metalearn.datamodules.sources.members import map_file
from metalearn.errors import DataError

__all__ = ["LARGEST_MAPPED", "ZipReader"]

LARGEST_MAPPED = 4 << 30
"""Bytes of a packed entry that must be unpacked into memory: a pickle in a zip archive."""
LEAST_TOTAL = 1 << 30
LARGEST_RATIO = 100
"""Of what an archive claims to hold to its own size, from ``LEAST_TOTAL`` bytes on. Pictures and pickles of them do not
shrink much, bombs do."""


class ZipReader:
    """Reads the entries of a zip archive by their numbers.

    Raises:
        DataError: an entry leads out of the archive, is no plain file, is encrypted, or claims too much.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._archive, self._lock = path, zipfile.ZipFile(path), threading.Lock()
        if self._archive.fp is not None:
            # it would close its file itself, but where it is part of a cycle, such as a traceback's, the file can go first
            weakref.finalize(self._archive, self._archive.fp.close)
        self._infos = self._archive.infolist()
        _check_directory(path, self._infos)

    def entries(self) -> Iterator[RawEntry]:
        """The files of the archive."""
        for key, info in enumerate(self._infos):
            if not info.is_dir():
                yield RawEntry(info.filename, info.file_size, (info.CRC,), key)

    def read(self, key: int) -> bytes:
        """The bytes of an entry; never more than it claims."""
        info = self._infos[key]
        try:
            with self._lock, self._archive.open(info) as file:
                data = file.read(info.file_size)
                beyond = file.read(1)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError) as error:
            raise self._damaged(info, str(error)) from error
        if beyond or len(data) != info.file_size:
            raise self._damaged(info, f"it does not have the {info.file_size} bytes that it claims")
        return data

    def map(self, key: int) -> memoryview:
        """The bytes of an entry: mapped where it is stored, unpacked into memory where it is deflated."""
        info = self._infos[key]
        if info.compress_type == zipfile.ZIP_STORED:
            return map_file(self._path, self._find_begin(info), info.file_size)
        if info.file_size > LARGEST_MAPPED:
            raise DataError(
                f"archive entry {self._path}/{info.filename} has {info.file_size} bytes, but at most {LARGEST_MAPPED} are "
                "unpacked into memory; extract the archive and set data.root to its folder"
            )
        return memoryview(self.read(key))

    def _find_begin(self, info: zipfile.ZipInfo) -> int:
        """Where a stored entry's bytes are: behind its local header, whose length the directory does not tell."""
        with self._path.open("rb") as file:
            file.seek(info.header_offset)
            header = file.read(30)
        if not header.startswith(b"PK\3\4") or len(header) < 30:
            raise self._damaged(info, "its header is missing")
        return info.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))

    def _damaged(self, info: zipfile.ZipInfo, why: str) -> DataError:
        return DataError(f"archive entry {self._path}/{info.filename} is damaged ({why}); fetch the archive again")


def _check_directory(path: Path, infos: list[zipfile.ZipInfo]) -> None:
    """Raise unless every entry is a plain file or folder within the archive, and all together claim no more than is likely."""
    total = 0
    for info in infos:
        check_name(path, info.orig_filename)
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise unsafe_entry(path, info.filename, "is a link or a device")
        if info.flag_bits & 1:
            raise DataError(f"archive {path}: entry {info.filename} is encrypted; pack it again without a password")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DataError(
                f"archive {path}: entry {info.filename} is damaged (method {info.compress_type} of packing is neither stored nor "
                "deflated); fetch the archive again, or pack it again with zip"
            )
        total += info.file_size
        if total > max(LEAST_TOTAL, LARGEST_RATIO * path.stat().st_size):
            raise DataError(
                f"archive {path}: entry {info.filename} brings what it claims to hold to {total} bytes, more than "
                f"{LARGEST_RATIO} times its own size; it is a decompression bomb: remove it"
            )
