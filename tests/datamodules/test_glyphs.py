"""Glyphs: no two classes are the same drawing, and scripts do not cross splits."""

from __future__ import annotations

import math
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from metalearn import ConfigError
from metalearn.datamodules import GlyphsDataModule
from metalearn.datamodules.sources.letters import SCRIPTS, Letters, distort, draw_letters


@pytest.fixture(scope="module")
def letters() -> Letters:
    return draw_letters()


def test_splits_are_scripts(letters: Letters) -> None:
    for letter, split in zip(letters.names, letters.splits, strict=True):
        assert unicodedata.name(letter).startswith(SCRIPTS[split])
    assert all(letters.splits.count(split) >= 50 for split in SCRIPTS)


def test_twins_are_one_class(letters: Letters) -> None:
    """Latin A, Greek Alpha and Cyrillic A, and their like."""
    for twins in ("AΑА", "oоο", "eе", "cсϲ", "HНΗ", "CС"):
        assert sum(letter in letters.names for letter in twins) == 1, twins


def test_no_two_classes_share_a_drawing(letters: Letters) -> None:
    """In no face are two classes the same picture, whatever split they are in."""
    for face in range(letters.drawings.shape[1]):
        flat = letters.drawings[:, face].flatten(1).numpy()
        assert len(np.unique(flat, axis=0)) == len(flat)


def test_distortions_differ_and_stay_in_the_picture() -> None:
    data = GlyphsDataModule()
    support, query = data.episode(0, "train", 0)
    x = torch.cat([support.x, query.x])
    assert x.shape == (80, 1, 28, 28)
    assert x.min() == 0
    assert x.flatten(1).amax(1).min() > 0.3
    assert len(torch.unique(x.flatten(1), dim=0)) == 80


def test_distortions_are_those_of_affine_grid(letters: Letters) -> None:
    """The pixels that ``F.affine_grid`` gives for these rotations, scales, shears and shifts, up to a rounding."""
    drawings = letters.drawings[7]
    found = distort(drawings, 4, torch.Generator().manual_seed(3))
    unit = 2 * torch.rand(6, 48, generator=torch.Generator().manual_seed(3)) - 1
    angle, scale, shear = math.radians(15) * unit[0], 1 + 0.15 * unit[1], 0.15 * unit[2]
    turn = torch.stack([torch.cos(angle), -torch.sin(angle), torch.sin(angle), torch.cos(angle)], -1).view(-1, 2, 2)
    lean = torch.eye(2).repeat(48, 1, 1)
    lean[:, 0, 1] = shear
    rows = torch.cat([turn @ lean / scale[:, None, None], unit[3:5].T[..., None] * (2 / 14)], -1)
    grid = F.affine_grid(rows, [48, 1, 56, 56], align_corners=False)
    plain = F.avg_pool2d(F.grid_sample(drawings.repeat_interleave(4, 0)[:, None], grid, align_corners=False), 2)
    assert np.abs(found.astype(int) - (plain * 255).round().numpy()).max() <= 1


def test_too_much_is_asked_before_anything_is_packed(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"shots \+ queries is 5 \+ 8 = 13, but class A, .*, has 12 images: .*raise variants"
    ):
        GlyphsDataModule(shots=5, queries=8, variants=1)
    with pytest.raises(ConfigError, match="ways is 5000, but the train split of GlyphsDataModule has"):
        GlyphsDataModule(ways=5000, cache_dir=str(tmp_path)).prepare_data()
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".lock"]
