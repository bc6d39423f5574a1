"""From an image file to the pixels that a model is trained on, and back from a checkpoint to that same recipe."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from metalearn.errors import DataError

__all__ = ["IMAGES", "ImageSpec", "read_image", "to_float"]

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
"""What is opened; Pillow knows more, and hands some of them to other programs."""
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
"""The ends of the names of image files."""


@dataclass(frozen=True)
class ImageSpec:
    """How images are read. Saved in checkpoints, so that new images meet the model as its training images did.

    Attributes:
        channels: how many channels an image has: 1 (grey) or 3 (colour).
        size: how many pixels an image is high and wide. The whole image is resized, and its aspect ratio is not kept.
        invert: whether dark ink on light paper becomes bright ink on black.
        mean: the mean of each channel, which is subtracted from pixels in 0..1.
        std: the deviation of each channel, by which pixels are divided.

    Example:
        >>> from metalearn.datamodules import ImageSpec
        >>> ImageSpec(channels=1, size=28, invert=True).to_dict()
        {'channels': 1, 'size': 28, 'invert': True, 'mean': [0.0], 'std': [1.0]}
    """

    channels: int = 3
    size: int = 84
    invert: bool = False
    mean: Sequence[float] = (0.0,)
    std: Sequence[float] = (1.0,)

    def to_dict(self) -> dict[str, Any]:
        """As plain types."""
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ImageSpec:
        """The inverse of :meth:`to_dict`."""
        return cls(**values)


def read_image(file: Path | IO[bytes], spec: ImageSpec, name: str | None = None) -> np.ndarray:
    """Read an image of any mode (grey, palette, alpha on white, CMYK, 16 bit) as uint8 ``[C, size, size]``.

    It is turned upright as its EXIF data say. Its mode tells how deep it is, never its values: whole numbers of more than 8
    bits count to 65,535, floats to 255.

    Raises:
        DataError: the file is no image, truncated, absurdly large, or has values beyond its depth; the line names it.
    """
    name = name or str(file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            # always from a stream: given a path, Pillow maps some files, and garbles a turned TIFF among them
            opened = file.open("rb") if isinstance(file, Path) else contextlib.nullcontext(file)
            with opened as stream, Image.open(stream, formats=FORMATS) as image:
                image.load()
                ImageOps.exif_transpose(image, in_place=True)
                plain = _make_plain(image, spec.channels, name)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"image {name} has too many pixels to be trusted ({error}); shrink or remove it") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, NotImplementedError) as error:
        raise DataError(
            f"image {name} cannot be read ({error}); it is truncated or no {', '.join(FORMATS)}: replace or remove it"
        ) from error
    if plain.size != (spec.size, spec.size):
        plain = plain.resize((spec.size, spec.size), Image.Resampling.LANCZOS)
    pixels = np.asarray(plain, np.uint8)
    pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return 255 - pixels if spec.invert else pixels


def _make_plain(image: Image.Image, channels: int, name: str) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        deep = np.asarray(image, np.float64)
        top = 255 if image.mode == "F" else 65535
        if not (deep.min() >= 0 and deep.max() <= top):  # so that NaN is refused too
            raise DataError(
                f"image {name} has pixels from {deep.min():g} to {deep.max():g}, but in mode {image.mode} they must lie in "
                f"0..{top}; save it with 8 bits a channel"
            )
        image = Image.fromarray(np.rint(deep * (255 / top)).astype(np.uint8))
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        paper = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(paper, image.convert("RGBA"))
    return image.convert("L" if channels == 1 else "RGB")


def to_float(images: np.ndarray, spec: ImageSpec) -> Tensor:
    """``(x / 255 - mean) / std`` as float32, for uint8 images ``[..., C, H, W]``."""
    pixels = torch.from_numpy(np.ascontiguousarray(images)).float().div_(255.0)
    if any(spec.mean) or any(value != 1 for value in spec.std):
        shape = (-1, 1, 1)
        pixels.sub_(torch.tensor(list(spec.mean)).view(shape)).div_(torch.tensor(list(spec.std)).view(shape))
    return pixels
