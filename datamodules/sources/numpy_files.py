"""Arrays in NumPy's own files, mapped where they lie and never unpickled."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from metalearn.datamodules.sources.archives import list_archive
from metalearn.datamodules.sources.members import Member
from metalearn.errors import DataError

__all__ = ["load_npz"]

LONGEST_HEADER = 4096


def load_npz(member: Member, key: str) -> np.ndarray:
    """An array of an ``.npz`` file in a folder: a read-only view of the mapped file where it is not compressed.

    Raises:
        DataError: the file is in an archive, damaged, lacks the array, or holds objects.
    """
    if not Path(member.name).is_file():
        raise DataError(
            f"{member.name} is in an archive, but .npz files are read from a folder only; extract the archive"
        )
    entries = list_archive(Path(member.name))
    if f"{key}.npy" not in entries:
        raise DataError(
            f"{member.name} has no array {key!r}, only {', '.join(sorted(entries)) or 'nothing'}; fetch it again"
        )
    data = entries[f"{key}.npy"].map()
    header = io.BytesIO(bytes(data[:LONGEST_HEADER]))
    try:
        version = np.lib.format.read_magic(header)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(header)
        if dtype.hasobject:
            raise ValueError("it holds Python objects")
        values = np.frombuffer(data, dtype, count=int(np.prod(shape)), offset=header.tell())
        return values.reshape(shape, order="F" if fortran else "C")
    except (ValueError, EOFError) as error:
        raise DataError(f"array {key!r} of {member.name} cannot be read ({error}); fetch it again") from error
