"""Whether images are like those of a training: a few plain numbers of them, kept in checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from metalearn.datamodules.sources.images import ImageSpec

__all__ = ["Statistics", "describe_images", "find_unlikeness"]

Statistics = dict[str, list[float]]
"""For each measure of an image its mean and its deviation over images."""

FAR = 4.0
"""Deviations from the training images' mean beyond which images are unlike them."""

LEAST = 0.03
"""A deviation at least so large, in units of full brightness: made images may have none."""

COLOUR = 0.06
"""Mean distance of channels from grey beyond which a file is coloured."""

LOOKED_AT = 20
"""Files that are opened again for what reading takes from them."""


def describe_images(images: np.ndarray) -> Statistics:
    """Statistics of uint8 images ``[n, C, H, W]``, in units of full brightness.

    They are brightness (mean), contrast (deviation), detail (mean step between neighbours) and colour (mean distance of channels
    from their mean).
    """
    return {name: [float(values.mean()), float(values.std())] for name, values in _measure(images).items()}


def find_unlikeness(
    images: np.ndarray, files: Sequence[Path], spec: ImageSpec, training: Statistics | None
) -> str | None:
    """How images differ from those of the training, in words; ``None`` where nothing is seen.

    Args:
        images: uint8 ``[n, C, H, W]``, as they were read.
        files: where they are from, for their colours and sizes before they were read.
        spec: how they were read.
        training: of the training images; ``None`` where they are not known.
    """
    differences = []
    for name, values in _measure(images).items() if training is not None else ():
        if training is None or name not in training:
            continue
        mean, deviation = training[name]
        here = float(values.mean())
        if abs(here - mean) > FAR * max(deviation, LEAST):
            differences.append(f"their {name} is {here:.2f}, that of the training images {mean:.2f} +- {deviation:.2f}")
    differences += _look_at(files[:: max(1, len(files) // LOOKED_AT)], spec)
    return ", and ".join(differences) if differences else None


def _measure(images: np.ndarray) -> dict[str, np.ndarray]:
    """Each measure of each image, ``[n]``."""
    pixels = images.astype(np.float32) / 255
    grey = pixels.mean(1)
    steps = [np.abs(np.diff(grey, axis=axis)).mean((1, 2)) for axis in (1, 2) if grey.shape[axis] > 1]
    return {
        "brightness": grey.mean((1, 2)),
        "contrast": grey.std((1, 2)),
        "detail": np.mean(steps, axis=0) if steps else np.zeros(len(images)),
        "colour": np.abs(pixels - grey[:, None]).mean((1, 2, 3)),
    }


def _look_at(files: Sequence[Path], spec: ImageSpec) -> list[str]:
    """What is lost of the files as they are read."""
    changes, sizes, coloured = [], [], 0
    for file in files:
        with Image.open(file) as image:
            sizes.append(image.size)
            small = np.asarray(image.convert("RGB").resize((32, 32)), np.float32) / 255
        coloured += bool(np.abs(small - small.mean(2, keepdims=True)).mean() > COLOUR)
    if spec.channels == 1 and coloured:
        changes.append(f"{coloured} of {len(sizes)} are coloured, where the network sees grey")
    small_ones = [size for size in sizes if max(size) * 2 <= spec.size]
    if small_ones:
        changes.append(
            f"{len(small_ones)} of {len(sizes)} have {small_ones[0][0]} x {small_ones[0][1]} pixels or so, which are enlarged to "
            f"{spec.size} x {spec.size}"
        )
    long_ones = [size for size in sizes if max(size) > 2 * min(size)]
    if long_ones:
        changes.append(
            f"{len(long_ones)} of {len(sizes)} are {long_ones[0][0]} x {long_ones[0][1]} pixels or so, which are pressed into a "
            "square"
        )
    return changes
