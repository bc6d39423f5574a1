"""Zip archives whose entries are read long after they were listed."""

from __future__ import annotations

import weakref
import zipfile
from pathlib import Path

__all__ = ["open_archive"]


def open_archive(path: Path) -> zipfile.ZipFile:
    """Open an archive that closes its file when it is let go.

    The archive would do so itself, but where it is part of a cycle, such as a traceback's, the file can come first.
    """
    archive = zipfile.ZipFile(path)
    if archive.fp is not None:
        weakref.finalize(archive, archive.fp.close)
    return archive
