"""The picture of a task whose examples are the pixels of one image."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from metalearn.reports.pictures import pyplot, save_figure

__all__ = ["draw_completion", "find_pixels"]

LEAST = 4
"""Pixels of a side: fewer are no image."""
UNKNOWN = 0.85
"""The grey of pixels that are not known."""


def find_pixels(places: np.ndarray) -> tuple[np.ndarray, tuple[int, int]] | None:
    """The number of each place in a grid, row by row, if the places are all pixels of an image.

    Args:
        places: ``[n, 2]``: rows and columns in any unit, in any order.

    Returns:
        the numbers ``[n]`` and the grid's height and width; ``None`` where some pixel is missing or there twice.
    """
    if places.ndim != 2 or places.shape[1] != 2 or len(places) < LEAST**2:
        return None
    (rows, row), (columns, column) = (np.unique(values, return_inverse=True) for values in places.T)
    height, width = len(rows), len(columns)
    numbers = row * width + column
    whole = min(height, width) >= LEAST and height * width == len(places) == len(np.unique(numbers))
    return (numbers, (height, width)) if whole else None


def draw_completion(
    path: Path, shape: tuple[int, int], pixels: tuple[np.ndarray, np.ndarray], colours: tuple[np.ndarray, np.ndarray],
    fits: Mapping[int, tuple[np.ndarray, np.ndarray]], title: str, spread: tuple[np.ndarray, str] | None = None,
) -> Path:  # fmt: skip
    """One image, its known pixels, and what a model makes of them.

    Args:
        path: the PNG file.
        shape: the image's height and width.
        pixels: the numbers ``[n]`` of the known pixels and ``[m]`` of the others, row by row.
        colours: ``[n, C]`` and ``[m, C]`` in 0..1, with one channel or three.
        fits: predictions ``[n, C]`` and ``[m, C]`` of the same pixels, for each number of inner steps.
        title: the heading.
        spread: how wide the band of each other pixel is, ``[m, C]``, and its name.
    """
    plt = pyplot()
    known = _paint(shape, [(pixels[0], colours[0])])
    panels: list[tuple[str, np.ndarray]] = [
        ("image", _paint(shape, [*zip(pixels, colours, strict=True)])), (f"{len(pixels[0])} known pixels", known),
    ]  # fmt: skip
    for step, fit in fits.items():
        error = float(np.sqrt(np.square(fit[1] - colours[1]).mean()))
        name = f"{step} {'step' if step == 1 else 'steps'}: RMSE {error:.3f}"
        panels.append((name, _paint(shape, [*zip(pixels, fit, strict=True)])))
    figure, axes = plt.subplots(
        1, len(panels) + (spread is not None), figsize=(1.9 * (len(panels) + (spread is not None)), 2.5), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for axis in axes[0]:
        axis.set_axis_off()
    for axis, (name, image) in zip(axes[0], panels, strict=False):
        axis.imshow(image, interpolation="nearest")
        axis.set_title(name, fontsize=8)
    if spread is not None:
        _show_spread(figure, axes[0, -1], shape, pixels[1], *spread)
    figure.suptitle(title, fontsize=9)
    return save_figure(figure, path)


def _show_spread(
    figure: Any, axis: Any, shape: tuple[int, int], pixels: np.ndarray, width: np.ndarray, name: str
) -> None:
    """A map of how wide the band of a pixel is, the mean over its channels; 0 where it is known."""
    values = np.zeros(shape[0] * shape[1])
    values[pixels] = width.mean(1)
    shown = axis.imshow(values.reshape(shape), cmap="viridis", interpolation="nearest", vmin=0)
    figure.colorbar(shown, ax=axis, shrink=0.6).ax.tick_params(labelsize=7)
    axis.set_title(name, fontsize=8)


def _paint(shape: tuple[int, int], parts: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """An image ``[H, W, 3]`` of the colours ``[n, C]`` of some pixels, grey elsewhere."""
    image = np.full((shape[0] * shape[1], 3), UNKNOWN)
    for pixels, colours in parts:
        image[pixels] = np.clip(colours, 0, 1)
    return image.reshape(*shape, 3)
