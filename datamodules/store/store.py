"""The packed image store: one file of uint8 images, class by class, mapped read-only so that processes share its pages."""

from __future__ import annotations

import hashlib
import json
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from metalearn.datamodules.store.header import read_header
from metalearn.errors import DataError

__all__ = ["Contents", "ImageStore"]

LISTED = 1 << 31
"""The most bytes that the names of images may take."""


class Contents(NamedTuple):
    """What a store will hold, known before it is packed.

    Attributes:
        names: a name for each class.
        counts: ``[classes]`` images of each class.
        groups: the group of each class, or ``""``.
        meta: what is remembered with them.
    """

    names: list[str]
    counts: np.ndarray
    groups: list[str]
    meta: dict[str, Any]


class ImageStore:
    """A store that is open for reading.

    Attributes:
        images: ``[total, C, H, W]`` uint8, mapped.
        names: a name for each class.
        counts: ``[classes]`` images of each class.
        offsets: ``[classes]`` the first image of each class.
        groups: the group of each class, or ``""``.
        meta: what the packer wanted remembered.
    """

    def __init__(self, path: Path, source: str) -> None:
        self.path, self.source = path, source
        self._header, begin = read_header(path)
        if self._header["source"] != source:
            raise DataError(f"store {path} was packed from another source; remove it, and it is packed again")
        shape = tuple(self._header["shape"])
        self._end = begin + int(np.prod(shape))
        size = self._end + self._header["list"]
        if path.stat().st_size != size:
            raise DataError(
                f"store {path} has {path.stat().st_size} bytes, but its header says {size}; remove it, and it is packed again"
            )
        self.images = np.memmap(path, np.uint8, mode="r", offset=begin, shape=shape)
        self.names: list[str] = self._header["names"]
        self.counts = np.asarray(self._header["counts"], np.int64)
        self.offsets = np.concatenate([[0], np.cumsum(self.counts)[:-1]])
        self.groups: list[str] = self._header["groups"]
        self.meta: dict[str, Any] = self._header["meta"]
        self._names: list[list[str]] | None = None

    def image_names(self, number: int) -> list[str] | None:
        """The names of the images of a class, ``None`` where they have none. The list of all is read when first asked for."""
        if not self._header["list"]:
            return None
        if self._names is None:
            with self.path.open("rb") as file:
                file.seek(self._end)
                self._names = json.loads(zlib.decompressobj().decompress(file.read(self._header["list"]), LISTED))
        return self._names[number]

    def statistics(self, classes: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The mean and the standard deviation of each channel, of pixels in 0..1, over all images of some classes."""
        first, second = np.asarray([self._header["sums"][number] for number in classes], object).sum(0)
        pixels = int(self.counts[classes].sum()) * int(np.prod(self.images.shape[2:]))
        means = [int(value) / pixels / 255 for value in first]
        # whole numbers until the end: a constant channel has a deviation of exactly 0
        spread = [
            (pixels * int(square) - int(value) ** 2) ** 0.5 / pixels / 255
            for value, square in zip(first, second, strict=True)
        ]
        return tuple(means), tuple(std if std > 0 else 1.0 for std in spread)

    def __reduce__(self) -> tuple[Any, ...]:
        return ImageStore, (self.path, self.source)

    def verify(self) -> None:
        """Read everything once and compare its checksum.

        Raises:
            DataError: the data is not what was packed.
        """
        digest = hashlib.sha256(self.images.reshape(-1).data)
        with self.path.open("rb") as file:
            file.seek(self._end)
            digest.update(file.read(self._header["list"]))
        if digest.hexdigest() != self._header["sha256"]:
            raise DataError(f"store {self.path} does not match its checksum; remove it, and it is packed again")
