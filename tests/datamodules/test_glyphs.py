"""Glyphs: no two classes are the same drawing, and scripts do not cross splits."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch

from metalearn import ConfigError
from metalearn.datamodules import GlyphsDataModule
from metalearn.datamodules.glyphs import SCRIPTS, Letters, draw_letters


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


def test_too_much_is_asked_before_anything_is_packed(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"shots \+ queries is 5 \+ 8 = 13, but class A, .*, has 12 images: .*raise variants"
    ):
        GlyphsDataModule(shots=5, queries=8, variants=1)
    with pytest.raises(ConfigError, match="ways is 5000, but the train split of GlyphsDataModule has"):
        GlyphsDataModule(ways=5000, cache_dir=str(tmp_path)).prepare_data()
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".lock"]
