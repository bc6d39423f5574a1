"""The header of a store: what it holds, in a form that tells whether it is whole."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metalearn.errors import DataError

__all__ = ["ALIGNMENT", "MAGIC", "VERSION", "encode_header", "fingerprint", "read_header"]

MAGIC = b"MLSTORE\n"
VERSION = 3
ALIGNMENT = 4096
FIELDS = {"shape", "names", "counts", "groups", "sums", "list", "sha256", "source", "meta", "digest"}


def encode_header(header: dict[str, Any]) -> bytes:
    """The bytes that a store begins with, padded so that the images behind them can be mapped."""
    text = json.dumps(header).encode()
    start = MAGIC + struct.pack("<II", VERSION, len(text)) + text
    return start + b"\0" * (-len(start) % ALIGNMENT)


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The header of a store, and where its images begin.

    Raises:
        DataError: it is no store, of another version, or damaged.
    """
    with path.open("rb") as file:
        start = file.read(len(MAGIC) + 8)
        if len(start) < len(MAGIC) + 8 or not start.startswith(MAGIC):
            raise DataError(f"store {path} is not a metalearn store; remove it, and it is packed again")
        version, length = struct.unpack("<II", start[len(MAGIC) :])
        if version != VERSION:
            raise DataError(f"store {path} has version {version}, but this release reads {VERSION}; remove it, and it is "
                            "packed again")  # fmt: skip
        text = file.read(length)
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"store {path} is cut short in its header; remove it, and it is packed again") from error
    if not _is_whole(header):
        raise DataError(f"store {path} has a damaged header; remove it, and it is packed again")
    used = len(MAGIC) + 8 + length
    return header, used + -used % ALIGNMENT


def _is_whole(header: Any) -> bool:
    """Whether every field is there, of its type, in agreement with the others, and as it was written."""
    if not isinstance(header, dict) or set(header) != FIELDS:
        return False
    written = {field: value for field, value in header.items() if field != "digest"}
    shape, names, counts, groups = header["shape"], header["names"], header["counts"], header["groups"]
    return (
        header["digest"] == fingerprint([json.dumps(written)])
        and all(isinstance(header[field], str) for field in ("sha256", "source"))
        and isinstance(header["meta"], dict)
        and all(isinstance(field, list) for field in (shape, names, counts, groups, header["sums"]))
        and all(type(number) is int and number >= 0 for number in (*shape, *counts, header["list"]))
        and all(isinstance(name, str) for name in (*names, *groups))
        and len(shape) == 4
        and len(names) == len(counts) == len(groups) == len(header["sums"])
        and sum(counts) == shape[0]
    )


def fingerprint(parts: Sequence[object]) -> str:
    """A short digest of what a store is made from."""
    return hashlib.sha256(json.dumps([str(part) for part in parts]).encode()).hexdigest()[:16]
