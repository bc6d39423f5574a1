"""Rows of numbers in a store of bytes: a row of ``F`` numbers is an image of one line of bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from metalearn.datamodules.store.opening import open_or_pack
from metalearn.datamodules.store.packer import Packer
from metalearn.datamodules.store.store import ImageStore

__all__ = ["RowClass", "open_rows", "view_rows"]

RowClass = tuple[str, np.ndarray, str]
"""The name of a class, its rows ``[n, F]``, and the group that it is in."""


def open_rows(
    name: str,
    source: str,
    width: int,
    dtype: type[np.generic],
    classes: Callable[[], Iterator[RowClass]],
    cache_dir: str | None,
    meta: Callable[[], dict[str, Any]] = dict,
) -> ImageStore:
    """Open the store of this name, packing rows into it first where it is missing, damaged, or of another source.

    Args:
        name: the file's stem.
        source: a fingerprint of what is packed.
        width: numbers in a row, ``F``.
        dtype: of these.
        classes: makes the rows, class by class.
        cache_dir: see :func:`~metalearn.datamodules.store.opening.cache_folder`.
        meta: makes what is remembered beside them, once all rows are packed.
    """
    size = width * np.dtype(dtype).itemsize

    def pack(packer: Packer) -> dict[str, Any]:
        for label, rows, group in classes():
            data = np.ascontiguousarray(rows, np.dtype(dtype).newbyteorder("<"))
            packer.add(label, data.view(np.uint8).reshape(len(data), 1, 1, size), group)
        return meta()

    return open_or_pack(name, source, (1, 1, size), pack, cache_dir)


def view_rows(store: ImageStore, dtype: type[np.generic]) -> np.ndarray:
    """The rows ``[total, F]`` of a store, mapped."""
    rows: np.ndarray = store.images.reshape(len(store.images), -1).view(np.dtype(dtype).newbyteorder("<"))
    return rows
