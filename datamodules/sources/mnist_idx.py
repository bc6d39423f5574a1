"""MNIST's IDX files, packed or plain, read without believing what they say of themselves."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from metalearn.errors import DataError

__all__ = ["FILES", "find_idx", "read_idx", "read_mnist"]

FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "t10k": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
"""Images and labels of each part, without ``.gz``."""
UINT8 = 0x08
LARGEST = 1 << 28
"""Bytes of values; MNIST's training images have 47 million."""


def find_idx(root: Path, name: str) -> Path | None:
    """The file of this name or its ``.gz``, in a folder or its ``MNIST/raw``; ``None`` where there is none."""
    for folder in (root, root / "raw", root / "MNIST" / "raw"):
        for path in (folder / name, folder / f"{name}.gz", folder / name.replace("-idx", ".idx")):
            if path.is_file():
                return path
    return None


def read_idx(path: Path, ndim: int) -> np.ndarray:
    """The array of unsigned bytes that an IDX file holds.

    Args:
        path: the file, plain or ``.gz``.
        ndim: how many axes it must have.

    Raises:
        DataError: it is truncated, longer than it says, foreign, or of another type or number of axes.
    """
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rb") if packed else path.open("rb") as file:
            head = file.read(4)
            if len(head) < 4 or head[:2] != b"\0\0" or head[2] != UINT8 or head[3] != ndim:
                raise DataError(
                    f"file {path} begins with {head.hex() or 'nothing'}, but an IDX file of bytes with {ndim} axes begins "
                    f"with 0000{UINT8:02x}{ndim:02x}; fetch it again"
                )
            sizes = file.read(4 * ndim)
            if len(sizes) < 4 * ndim:
                raise DataError(f"file {path} ends within its header; it is truncated: fetch it again")
            shape = struct.unpack(f">{ndim}I", sizes)
            size = math.prod(shape)
            if not 0 < size <= LARGEST:
                raise DataError(
                    f"file {path} claims the shape {list(shape)}, but it must hold from 1 to {LARGEST} bytes; fetch it again"
                )
            data = file.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"file {path} cannot be read ({error}); it is truncated or damaged: fetch it again") from error
    if len(data) != size:
        count = f"only {len(data)}" if len(data) < size else "more"
        raise DataError(
            f"file {path} has {count} of the {size} bytes that its header says; it is truncated or damaged: fetch it again"
        )
    return np.frombuffer(data, np.uint8).reshape(shape)


def read_mnist(root: str | Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The parts that are there: uint8 images ``[n, H, W]`` and int64 labels ``[n]`` of ``train``, ``t10k`` or both.

    Raises:
        DataError: neither part is there, a part lacks a file, or its files disagree.
    """
    root = Path(root)
    parts: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for part, names in FILES.items():
        paths = [find_idx(root, name) for name in names]
        if paths[0] is None and paths[1] is None:
            continue
        if paths[0] is None or paths[1] is None:
            missing = names[0 if paths[0] is None else 1]
            raise DataError(f"folder {root} has no {missing}[.gz], but images and labels are both needed; fetch it too")
        images, labels = read_idx(paths[0], 3), read_idx(paths[1], 1)
        if len(images) != len(labels):
            raise DataError(
                f"file {paths[0]} has {len(images)} images and {paths[1].name} {len(labels)} labels, but there must be one for "
                "each image; fetch both again"
            )
        if labels.max() > 9:
            raise DataError(f"file {paths[1]} has the label {labels.max()}, but digits are 0 to 9; fetch it again")
        parts[part] = images, labels.astype(np.int64)
    if not parts:
        raise DataError(
            f"folder {root} has no MNIST files, but {FILES['t10k'][0]}[.gz] and {FILES['t10k'][1]}[.gz] (or train-*) must be in "
            "it; set root to their folder"
        )
    return parts
