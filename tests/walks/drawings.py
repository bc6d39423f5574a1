"""A user's own images: simple drawings, dark on light paper, a folder for each class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

STROKES = {
    "house": [[(8, 58), (8, 30), (32, 8), (56, 30), (56, 58), (8, 58)]],
    "tree": [[(32, 60), (32, 30)], [(16, 30), (32, 4), (48, 30), (16, 30)]],
    "boat": [[(6, 40), (18, 56), (46, 56), (58, 40), (6, 40)], [(32, 40), (32, 8), (50, 30), (32, 30)]],
}


def draw(name: str, number: int) -> Image.Image:
    """A drawing with an unsteady hand."""
    generator = np.random.default_rng([len(name), number])
    image = Image.new("L", (64, 64), 255)
    for stroke in STROKES[name]:
        points = np.array(stroke) + generator.normal(0, 1.5, (len(stroke), 2))
        ImageDraw.Draw(image).line([tuple(point) for point in points], fill=0, width=4)
    return image


def make_drawings(folder: Path) -> None:
    """Two labelled drawings of each class in ``SUPPORT``, and one of each to name in ``QUERIES``."""
    (folder / "QUERIES").mkdir()
    for name in STROKES:
        (folder / "SUPPORT" / name).mkdir(parents=True)
        for number in range(2):
            draw(name, number).save(folder / "SUPPORT" / name / f"{number}.png")
        draw(name, 2).save(folder / "QUERIES" / f"{name}.png")
