"""Zip and tar archives, read in place: nothing is extracted, and nothing that an archive says is believed unchecked."""

from __future__ import annotations

import contextlib
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from metalearn.datamodules.sources.members import Member
from metalearn.datamodules.sources.tar_reader import TarReader, stream_tar
from metalearn.datamodules.sources.zip_reader import ZipReader
from metalearn.errors import DataError

__all__ = ["ARCHIVES", "COMPRESSED", "list_archive", "stream_archive"]

ARCHIVES = (".zip", ".tar")
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
PACKERS = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ\0": "unxz"}
UNREADABLE = (
    zipfile.BadZipFile, tarfile.TarError, lzma.LZMAError, zlib.error, OSError, EOFError, ValueError, NotImplementedError
)  # fmt: skip


def list_archive(path: Path) -> dict[str, Member]:
    """The files of a zip or plain tar archive by their paths in it; folders, hidden files and ``__MACOSX`` are left out.

    A compressed tar has no place that could be read without all that comes before it, so it is refused.

    Raises:
        DataError: the archive is truncated, foreign or a compressed tar; or an entry is there twice, leads out of the
            archive, is a link or a device, is encrypted, or claims too much.
    """
    with _name_unreadable(path, "zip or tar"):
        with path.open("rb") as file:
            start = file.read(6)
        for magic, tool in PACKERS.items():
            if start.startswith(magic):
                raise DataError(
                    f"archive {path} is compressed as a whole, so its images cannot be read in place; decompress it with: "
                    f"{tool} {path}"
                )
        reader = ZipReader(path) if start.startswith(b"PK") else TarReader(path)
        members: dict[str, Member] = {}
        for entry in reader.entries():
            parts = [part for part in entry.name.split("/") if part not in ("", ".")]
            if any(part.startswith(".") or part == "__MACOSX" for part in parts):
                continue
            inner = "/".join(parts)
            if inner in members:
                raise DataError(f"archive {path}: entry {inner} is there twice; pack the archive again")
            members[inner] = Member(f"{path}/{inner}", entry.size, (entry.size, *entry.signs), reader, entry.key)
    return members


def stream_archive(path: Path, largest: int, what: str) -> Iterator[tuple[str, bytes]]:
    """Names and contents of a tar's files in one pass, of a compressed one too.

    Args:
        path: the archive.
        largest: bytes that an entry may have.
        what: what an entry is, for the message where one is larger.

    Raises:
        DataError: the archive is truncated or foreign; or an entry leads out of it, is a link or a device, or claims too much.
    """
    with _name_unreadable(path, "tar"):
        yield from stream_tar(path, largest, what)


@contextlib.contextmanager
def _name_unreadable(path: Path, kind: str) -> Iterator[None]:
    """Turn what Python's readers raise for a broken archive into one line."""
    try:
        yield
    except UNREADABLE as error:
        raise DataError(
            f"archive {path} cannot be read ({error}); it is truncated or no {kind} file: fetch it again"
        ) from error
