"""Zip and tar archives, read in place: nothing is extracted, and nothing that an archive says is believed unchecked."""

from __future__ import annotations

import io
import mmap
import stat
import struct
import tarfile
import threading
import weakref
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath
from typing import IO, NamedTuple, Protocol

from metalearn.errors import DataError

__all__ = ["ARCHIVES", "COMPRESSED", "Member", "check_name", "list_archive", "map_file", "open_archive", "unsafe"]

ARCHIVES = (".zip", ".tar")
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
LARGEST_READ = 64 << 20
"""Of a file that is read whole: an image, a table."""
LARGEST_MAPPED = 4 << 30
"""Of a packed file that must be unpacked into memory: a pickle in a zip archive."""
LEAST_TOTAL = 1 << 30
LARGEST_RATIO = 100
"""Of what an archive claims to hold to its own size, from ``LEAST_TOTAL`` bytes on: pictures and pickles of them do not
shrink much, bombs do."""
PACKERS = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ\0": "unxz"}


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


def open_archive(path: Path) -> zipfile.ZipFile:
    """Open a zip archive that closes its file when it is let go, and whose entries are all safe to read.

    The archive would close it itself, but where it is part of a cycle, such as a traceback's, the file can come first.

    Raises:
        DataError: an entry leads out of the archive, is no plain file, is encrypted, or claims too much.
    """
    archive = zipfile.ZipFile(path)
    if archive.fp is not None:
        weakref.finalize(archive, archive.fp.close)
    total = 0
    for info in archive.infolist():
        check_name(path, info.orig_filename)
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise unsafe(path, info.filename, "is a link or a device")
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
    return archive


def list_archive(path: Path) -> dict[str, Member]:
    """The files of a zip or plain tar archive by their paths in it; folders, hidden files and ``__MACOSX`` are left out.

    A compressed tar has no place that could be read without all that comes before it, so it is refused.

    Raises:
        DataError: the archive is truncated, foreign or a compressed tar; or an entry is there twice, leads out of the
            archive, is a link or a device, is encrypted, or claims too much.
    """
    try:
        with path.open("rb") as file:
            start = file.read(6)
        for magic, tool in PACKERS.items():
            if start.startswith(magic):
                raise DataError(
                    f"archive {path} is compressed as a whole, so its images cannot be read in place; decompress it with: "
                    f"{tool} {path}"
                )
        reader = _ZipReader(path) if start.startswith(b"PK") else _TarReader(path)
        found: dict[str, Member] = {}
        for name, size, signs, key in reader.entries():
            parts = [part for part in name.split("/") if part not in ("", ".")]
            if any(part.startswith(".") or part == "__MACOSX" for part in parts):
                continue
            inner = "/".join(parts)
            if inner in found:
                raise DataError(f"archive {path}: entry {inner} is there twice; pack the archive again")
            found[inner] = Member(f"{path}/{inner}", size, (size, *signs), reader, key)
    except (zipfile.BadZipFile, tarfile.TarError, OSError, EOFError, ValueError, NotImplementedError) as error:
        raise DataError(
            f"archive {path} cannot be read ({error}); it is truncated or no zip or tar file: fetch it again"
        ) from error
    return found


def map_file(path: Path, offset: int = 0, size: int | None = None) -> memoryview:
    """A part of a file, mapped: pages come in when they are looked at, and go when memory is short."""
    size = path.stat().st_size - offset if size is None else size
    if size == 0:
        return memoryview(b"")
    if offset + size > path.stat().st_size:
        raise DataError(f"file {path} ends before byte {offset + size}; it is truncated: fetch it again")
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))[offset : offset + size]


class _ZipReader:
    def __init__(self, path: Path) -> None:
        self._path, self._archive, self._lock = path, open_archive(path), threading.Lock()
        self._infos = self._archive.infolist()

    def entries(self) -> Iterator[tuple[str, int, tuple[int, ...], int]]:
        for key, info in enumerate(self._infos):
            if not info.is_dir():
                yield info.filename, info.file_size, (info.CRC,), key

    def read(self, key: int) -> bytes:
        info = self._infos[key]
        try:
            with self._lock, self._archive.open(info) as file:
                data = file.read(info.file_size)
                beyond = file.read(1)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError) as error:
            raise DataError(
                f"archive entry {self._path}/{info.filename} is damaged ({error}); fetch the archive again"
            ) from error
        if beyond or len(data) != info.file_size:
            raise DataError(
                f"archive entry {self._path}/{info.filename} is damaged (it does not have the {info.file_size} bytes that it "
                "claims); fetch the archive again"
            )
        return data

    def map(self, key: int) -> memoryview:
        info = self._infos[key]
        if info.compress_type == zipfile.ZIP_STORED:
            return map_file(self._path, self._begin(info), info.file_size)
        if info.file_size > LARGEST_MAPPED:
            raise DataError(
                f"archive entry {self._path}/{info.filename} has {info.file_size} bytes, but at most {LARGEST_MAPPED} are "
                "unpacked into memory; extract the archive and set data.root to its folder"
            )
        return memoryview(self.read(key))

    def _begin(self, info: zipfile.ZipInfo) -> int:
        """Where a stored entry's bytes are: behind its local header, whose length the directory does not tell."""
        with self._path.open("rb") as file:
            file.seek(info.header_offset)
            header = file.read(30)
        if not header.startswith(b"PK\3\4") or len(header) < 30:
            raise DataError(
                f"archive entry {self._path}/{info.filename} is damaged (its header is missing); fetch the archive again"
            )
        return info.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))


class _TarReader:
    def __init__(self, path: Path) -> None:
        self._path, self._lock, self._file = path, threading.Lock(), path.open("rb")
        weakref.finalize(self, self._file.close)
        self._places: list[tuple[int, int]] = []

    def entries(self) -> Iterator[tuple[str, int, tuple[int, ...], int]]:
        found = self._path.stat()
        with tarfile.open(self._path, "r:") as archive:
            for info in archive:
                check_name(self._path, info.name)
                if info.isdir():
                    continue
                if not info.isreg() or info.issparse():
                    raise unsafe(self._path, info.name, "is a link or a device")
                if info.offset_data + info.size > found.st_size:
                    raise DataError(
                        f"archive {self._path}: entry {info.name} claims {info.size} bytes, more than the archive has; it is "
                        "truncated: fetch it again"
                    )
                self._places.append((info.offset_data, info.size))
                signs = (int(info.mtime), info.offset_data, found.st_mtime_ns)  # a tar has no checksums of contents
                yield info.name, info.size, signs, len(self._places) - 1

    def read(self, key: int) -> bytes:
        offset, size = self._places[key]
        with self._lock:
            self._file.seek(offset)
            data = self._file.read(size)
        if len(data) != size:
            raise DataError(f"archive {self._path} has shrunk while it was read; fetch it again")
        return data

    def map(self, key: int) -> memoryview:
        return map_file(self._path, *self._places[key])


def check_name(path: Path, name: str) -> None:
    """Raise a DataError unless an entry's name is a relative path that stays within the archive."""
    if not name.isprintable():
        raise unsafe(path, name, "has a name that cannot be printed")
    if "\\" in name or name.startswith("/") or PureWindowsPath(name).drive:
        raise unsafe(path, name, "is no relative path with forward slashes")
    if ".." in name.split("/"):
        raise unsafe(path, name, "leads out of the archive")


def unsafe(path: Path, name: str, why: str) -> DataError:
    """What to raise for an entry that no honest archive has."""
    return DataError(f"archive {path}: entry {name!r} {why}, so the archive is not trusted; remove the entry, or fetch the "
                     "archive from its authors")  # fmt: skip
