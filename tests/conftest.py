from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: two test processes must not wait by spinning

from pathlib import Path

import pytest
import torch

from tests.made import make_folder, make_omniglot


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache folder for all tests, so that Glyphs is packed once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _own_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METALEARN_CACHE", str(cache))


@pytest.fixture(autouse=True)
def _own_random_numbers() -> None:
    """A test draws the same numbers, whichever tests ran before it in its process."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def omniglot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 made characters: enough for 20-way tasks in every split."""
    return make_omniglot(tmp_path_factory.mktemp("omniglot"))


@pytest.fixture(scope="session")
def miniimagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six made classes for each split, in folders."""
    root = tmp_path_factory.mktemp("miniimagenet")
    classes = sorted(make_folder(root, classes=18, images=7).iterdir())
    for number, folder in enumerate(classes):
        split = root / ("train", "val", "test")[number // 6]
        split.mkdir(exist_ok=True)
        folder.rename(split / folder.name)
    return root
