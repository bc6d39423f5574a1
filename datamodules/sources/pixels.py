"""Images that are arrays already, or files in a list: what pickles hold."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

from metalearn.datamodules.sources.images import ImageSpec, read_image
from metalearn.errors import DataError

__all__ = ["EncodedImages", "PixelArray"]


class PixelArray:
    """Colour images in an array ``[n, H, W, 3]`` or ``[n, 3, H, W]``: uint8, or any numbers in 0..255.

    Args:
        values: the array; it is only looked at.
        name: how messages call it.

    Raises:
        DataError: it has another shape, or no numbers.
    """

    def __init__(self, values: Any, name: str) -> None:
        shape: tuple[int, ...] = getattr(values, "shape", ())
        if not isinstance(values, np.ndarray) or values.dtype.kind not in "uif" or len(shape) != 4:
            kind = f"{values.dtype} {list(shape)}" if isinstance(values, np.ndarray) else type(values).__name__
            raise DataError(
                f"images in {name} are {kind}, but they must be an array of numbers [n, H, W, 3]; save them so"
            )
        if shape[3] != 3 and shape[1] == 3:
            values = values.transpose(0, 2, 3, 1)
        elif shape[3] != 3:
            raise DataError(f"images in {name} have the shape {list(shape)}, but it must be [n, H, W, 3]; save them so")
        self._values, self._name = values, name

    def __len__(self) -> int:
        return len(self._values)

    @cached_property
    def _top(self) -> float:
        return float(self._values.max())

    def read(self, index: int, spec: ImageSpec) -> np.ndarray:
        """An image as uint8 ``[C, size, size]``, resized as files are.

        Raises:
            DataError: values are not in 0..255, or all of them in 0..1.
        """
        pixels = self._values[index]
        if pixels.dtype != np.uint8:
            if not (pixels.min() >= 0 and self._top <= 255):  # so that NaN is refused too
                raise DataError(
                    f"image {index} in {self._name} has values from {pixels.min():g} and the set has up to {self._top:g}, but "
                    "they must lie in 0..255; save them as uint8, before they are normalised"
                )
            if self._top <= 1:
                raise DataError(
                    f"images in {self._name} have values in 0..1, but white is 255; multiply by 255 and save them as uint8"
                )
            pixels = np.rint(pixels).astype(np.uint8)
        image = Image.fromarray(np.ascontiguousarray(pixels))
        if spec.channels == 1:
            image = image.convert("L")
        if image.size != (spec.size, spec.size):
            image = image.resize((spec.size, spec.size), Image.Resampling.LANCZOS)
        array = np.asarray(image)
        array = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
        return 255 - array if spec.invert else array


class EncodedImages:
    """Image files (PNG, JPEG) in a list, as bytes or as arrays of them, loaded when the first is read.

    Args:
        load: gives the list.
        count: how many there must be.
        name: how messages call it.
    """

    def __init__(self, load: Callable[[], Any], count: int, name: str) -> None:
        self._load, self._count, self._name = load, count, name
        self._lock = threading.Lock()
        self._files: Any = None

    def read(self, index: int, spec: ImageSpec) -> np.ndarray:
        """An image as uint8 ``[C, size, size]``.

        Raises:
            DataError: the list has another length than its labels, or the image cannot be read.
        """
        with self._lock:
            if self._files is None:
                self._files = self._check_list(self._load())
        file = self._files[index]
        data = file.tobytes() if isinstance(file, np.ndarray) else file
        if not isinstance(data, (bytes, memoryview)):
            raise DataError(
                f"image {index} in {self._name} is a {type(data).__name__}, but images must be PNG or JPEG files; save it anew"
            )
        return read_image(io.BytesIO(data), spec, f"{index} in {self._name}")

    def _check_list(self, files: Any) -> Any:
        if not isinstance(files, (list, tuple, np.ndarray)) or len(files) != self._count:
            held = f"{len(files)} images" if hasattr(files, "__len__") else f"a {type(files).__name__}"
            raise DataError(
                f"{self._name} holds {held}, but there are {self._count} labels; fetch both files again from one source"
            )
        return files
