"""Letters rendered from the DejaVu fonts that matplotlib ships, and their distortions."""

from __future__ import annotations

import math
import unicodedata
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

__all__ = ["FACES", "RECIPE", "SCRIPTS", "SIZE", "Letters", "distort", "draw_letters", "find_script"]

FACES = tuple(
    f"DejaVu{family}{style}"
    for family, styles in (
        ("Sans", ("", "-Bold", "-Oblique", "-BoldOblique")),
        ("SansMono", ("", "-Bold", "-Oblique", "-BoldOblique")),
        ("Serif", ("", "-Bold", "-Italic", "-BoldItalic")),
    )
    for style in styles
)
SCRIPTS = {"train": ("LATIN", "GREEK"), "val": ("CYRILLIC",), "test": ("ARMENIAN", "GEORGIAN")}
SIZE = 28
CANVAS = 2 * SIZE
"""Letters are drawn at twice the size, distorted, then averaged down."""
POINTS = 50.0
BOX = 20
TWIN = 0.97
"""Letters whose drawings, cropped and scaled to one box, correlate this much over the faces count as one letter."""
RECIPE = 2
"""Raised whenever the drawing changes, so that stores are packed again."""


def find_script(letter: str) -> str:
    """The script that a letter belongs to, such as ``"LATIN"``."""
    return unicodedata.name(letter).partition(" ")[0]


class Letters(NamedTuple):
    """Letters that look different from one another.

    Attributes:
        names: the letters themselves.
        splits: the split of each.
        drawings: ``[letters, faces, CANVAS, CANVAS]`` in 0..1, bright ink, centred on the ink's bounding box.
    """

    names: list[str]
    splits: list[str]
    drawings: Tensor


def draw_letters() -> Letters:
    """Draw every letter of :data:`SCRIPTS` that all faces have, and keep one of each group of twins."""
    import matplotlib
    from matplotlib.ft2font import FT2Font

    home = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    fonts = [FT2Font(str(home / f"{face}.ttf")) for face in FACES]
    shared = set.intersection(*(set(font.get_charmap()) for font in fonts))
    letters = [
        (chr(code), split)
        for split, scripts in SCRIPTS.items()
        for code in sorted(shared)
        if unicodedata.category(chr(code)).startswith("L") and unicodedata.name(chr(code), "").startswith(scripts)
    ]
    for font in fonts:
        font.set_size(POINTS, 72)
    drawn = [(letter, split, [_ink(font, letter) for font in fonts]) for letter, split in letters]
    whole = [(letter, split, inks) for letter, split, inks in drawn if all(ink.size for ink in inks)]
    drawings = torch.from_numpy(np.stack([[_centre(ink) for ink in inks] for _, _, inks in whole]))
    boxes = torch.from_numpy(np.stack([[_box(ink) for ink in inks] for _, _, inks in whole])).flatten(2)
    kept = _keep_first_of_twins(boxes)
    return Letters([whole[i][0] for i in kept], [whole[i][1] for i in kept], drawings[kept])


def distort(drawings: Tensor, variants: int, generator: torch.Generator) -> np.ndarray:
    """Distort the drawings ``[faces, CANVAS, CANVAS]`` of a letter: uint8 ``[faces * variants, 1, SIZE, SIZE]``."""
    images = drawings.repeat_interleave(variants, 0)[:, None]
    count = len(images)
    unit = 2 * torch.rand(6, count, generator=generator) - 1
    angle, scale, shear = math.radians(15) * unit[0], 1 + 0.15 * unit[1], 0.15 * unit[2]
    shift = unit[3:5] * (2.0 / (SIZE / 2))
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    grid = torch.empty(count, CANVAS, CANVAS, 2)
    _spread(cos, cos * shear - sin, shift[0], out=grid[..., 0])
    _spread(sin, sin * shear + cos, shift[1], out=grid[..., 1])
    small = F.avg_pool2d(F.grid_sample(images, grid, align_corners=False), 2)
    return (small * 255).round().clamp(0, 255).to(torch.uint8).numpy()


@cache
def _pixels() -> Tensor:
    """Where the pixels of a canvas's side are, in -1..1: ``[CANVAS]``."""
    upright = F.affine_grid(torch.eye(2, 3)[None], [1, 1, CANVAS, CANVAS], align_corners=False)
    return upright[0, 0, :, 0].clone()


def _spread(across: Tensor, down: Tensor, start: Tensor, out: Tensor) -> None:
    """Write one coordinate of the affine grids of ``[n]`` pictures to ``out`` ``[n, CANVAS, CANVAS]``.

    The numbers of ``F.affine_grid``, whose many tiny matrix products take twenty times as long.
    """
    along = across[:, None, None] * _pixels() + down[:, None, None] * _pixels()[:, None]
    torch.add(along, start[:, None, None], out=out)


def _ink(font: Any, letter: str) -> np.ndarray:
    font.set_text(letter, 0.0)
    font.draw_glyphs_to_bitmap(antialiased=True)
    image = np.asarray(font.get_image())
    rows, columns = np.flatnonzero(image.any(1)), np.flatnonzero(image.any(0))
    if not len(rows):
        return image[:0]
    return image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.float32) / 255


def _centre(ink: np.ndarray) -> np.ndarray:
    """The ink in the middle of the canvas, shrunk if it is too large."""
    scale = min(1.0, (CANVAS - 8) / max(ink.shape))
    height, width = (max(1, round(scale * side)) for side in ink.shape)
    return _pad(_resize(ink, height, width), CANVAS)


def _box(ink: np.ndarray) -> np.ndarray:
    """The ink in a square box of its longer side, so that size does not count but proportion does."""
    scale = BOX / max(ink.shape)
    height, width = (max(1, round(scale * side)) for side in ink.shape)
    return _pad(_resize(ink, height, width), BOX)


def _resize(ink: np.ndarray, height: int, width: int) -> np.ndarray:
    if ink.shape == (height, width):
        return ink
    return np.asarray(Image.fromarray(ink).resize((width, height), Image.Resampling.BOX))


def _pad(ink: np.ndarray, side: int) -> np.ndarray:
    square = np.zeros((side, side), np.float32)
    top, left = (side - ink.shape[0]) // 2, (side - ink.shape[1]) // 2
    square[top : top + ink.shape[0], left : left + ink.shape[1]] = ink
    return square


def _keep_first_of_twins(boxes: Tensor) -> list[int]:
    """Positions of the letters to keep, of boxes ``[letters, faces, D]``: the first of every connected group of twins."""
    unit = F.normalize(boxes - boxes.mean(-1, keepdim=True), dim=-1)
    alike = torch.einsum("ifd,jfd->ijf", unit, unit)
    twins = (alike.mean(-1) > TWIN) | (alike.amax(-1) > 0.999)
    group = list(range(len(boxes)))
    for i, j in twins.nonzero().tolist():
        a, b = _root(group, i), _root(group, j)
        group[max(a, b)] = min(a, b)
    return [i for i in range(len(boxes)) if _root(group, i) == i]


def _root(group: list[int], i: int) -> int:
    while group[i] != i:
        i = group[i]
    return i
