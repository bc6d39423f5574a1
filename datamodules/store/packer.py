"""What is written into a store: images class by class, their sums, their names and a checksum."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["Packer"]


class Packer:
    """Receives the images of a store, class by class."""

    def __init__(self, file: Any, shape: tuple[int, int, int]) -> None:
        self._file, self._shape = file, shape
        self._digest = hashlib.sha256()
        self._images: list[list[str]] = []
        self.names: list[str] = []
        self.groups: list[str] = []
        self.counts: list[int] = []
        self.sums: list[list[list[int]]] = []

    def add(self, name: str, images: np.ndarray, group: str = "", image_names: Sequence[str] = ()) -> None:
        """Append a class: ``images`` ``[n, C, H, W]`` uint8, the group it is in, and a name for each image or for none."""
        if images.shape[1:] != self._shape or images.dtype != np.uint8:
            raise ValueError(f"images are {images.dtype} {images.shape}, the store holds uint8 {self._shape}")
        if image_names and len(image_names) != len(images):
            raise ValueError(f"there are {len(image_names)} names for {len(images)} images of class {name}")
        data = np.ascontiguousarray(images).tobytes()
        self._file.write(data)
        self._digest.update(data)
        self.names.append(name)
        self.groups.append(group)
        self.counts.append(len(images))
        self._images.append(list(image_names))
        counted = [np.bincount(images[:, channel].ravel(), minlength=256) for channel in range(self._shape[0])]
        values = np.arange(256)
        self.sums.append([[int(count @ values**power) for count in counted] for power in (1, 2)])

    def finish(self) -> int:
        """Append the names of the images, and return how many bytes they take."""
        if not any(self._images):
            return 0
        data = zlib.compress(json.dumps(self._images).encode())
        self._file.write(data)
        self._digest.update(data)
        return len(data)

    @property
    def sha256(self) -> str:
        """The checksum of what was added so far."""
        return self._digest.hexdigest()
