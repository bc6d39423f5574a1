"""Folders that people make by hand: labelled examples, and images to classify."""

from __future__ import annotations

from pathlib import Path

import pytest

from metalearn import DataError
from metalearn.datamodules.sources.folders import read_queries, read_support
from metalearn.datamodules.sources.images import ImageSpec
from tests.made import make_folder


def test_support_and_query_folders(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "mine", classes=3, images=2)
    images, labels, names = read_support(root, ImageSpec(size=16))
    assert images.shape == (6, 3, 16, 16)
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert names == ["class00", "class01", "class02"]
    assert len(read_queries(root, ImageSpec(size=16))[1]) == 6
    (root / "empty").mkdir()
    with pytest.raises(DataError, match="empty holds no image"):
        read_support(root, ImageSpec())
    with pytest.raises(DataError, match="has 0 class folders"):
        read_support(root / "class00", ImageSpec())
    with pytest.raises(DataError, match="is not a folder"):
        read_queries(root / "nowhere", ImageSpec())
    with pytest.raises(DataError, match="holds no image"):
        read_queries(root / "empty", ImageSpec())
