"""A picture of what is in a data set: some images of some classes of each split."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from metalearn.reports.pictures import INK, pyplot, save_figure
from metalearn.reports.text import escape_for_figure

__all__ = ["draw_contact_sheet"]

GAP = 2


def draw_contact_sheet(path: Path, rows: Sequence[tuple[str, str, np.ndarray]], title: str) -> Path:
    """A row of images for each class.

    Args:
        path: the PNG file.
        rows: for each class its split, its name, and uint8 images ``[n, C, H, W]``.
        title: the heading.
    """
    plt = pyplot()
    strips = [_strip(images) for _, _, images in rows]
    width = max(strip.shape[1] for strip in strips) / strips[0].shape[0]
    figure, axes = plt.subplots(
        len(rows), 1, figsize=(0.5 * width + 1.7, 0.52 * len(rows) + 0.5), squeeze=False, layout="constrained"
    )
    for axis, (split, name, _), strip in zip(axes[:, 0], rows, strips, strict=True):
        axis.imshow(strip, cmap="gray", vmin=0, vmax=255)
        axis.set_xlim(0, width * strip.shape[0])
        axis.set_anchor("W")
        axis.set_axis_off()
        label = escape_for_figure(f"{split}: {name if len(name) <= 28 else '…' + name[-27:]}")
        axis.text(-0.01, 0.5, label, transform=axis.transAxes, ha="right", va="center", fontsize=7, color=INK)
    figure.suptitle(escape_for_figure(title), fontsize=9)
    return save_figure(figure, path)


def _strip(images: np.ndarray) -> np.ndarray:
    """The images ``[n, C, H, W]`` side by side: ``[H, W', 3]``, or ``[H, W']`` if grey."""
    padded = np.pad(images, ((0, 0), (0, 0), (0, 0), (0, GAP)), constant_values=255)
    joined = padded.transpose(2, 0, 3, 1).reshape(images.shape[2], -1, images.shape[1])
    return joined[..., 0] if joined.shape[-1] == 1 else joined
