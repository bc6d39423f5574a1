"""Folders of people's own images: tables of labels, splits by name, images that cannot be read."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from metalearn import ConfigError, DataError
from metalearn.datamodules import EpisodeOptions, ImageFolderEpisodes
from tests.made import make_folder

SMALL: dict[str, Any] = {"ways": 2, "shots": 1, "queries": 2, "image_size": 16}


# ---------------------------------------------------------------- tables of labels
def table(root: Path, lines: list[str], header: str = "filename,label", end: str = "\n", mark: str = "") -> str:
    path = root / "labels.csv"
    path.write_bytes((mark + end.join([header, *lines, ""])).encode())
    return str(path)


@pytest.fixture
def flat(tmp_path: Path) -> tuple[Path, list[str]]:
    """All images in one folder, and the lines of a table that says what they are."""
    source = make_folder(tmp_path / "classes")
    (tmp_path / "flat").mkdir()
    lines = []
    for file in sorted(source.rglob("*.png")):
        name = f"{file.parent.name}_{file.name}"
        (tmp_path / "flat" / name).write_bytes(file.read_bytes())
        lines.append(f"{name},{file.parent.name}")
    return tmp_path, lines


@pytest.mark.parametrize(("end", "mark"), [("\n", ""), ("\r\n", "\ufeff")])
def test_a_table_and_folders_give_the_same_episodes(flat: tuple[Path, list[str]], end: str, mark: str) -> None:
    root, lines = flat
    data = ImageFolderEpisodes(str(root / "flat"), labels=table(root, lines, end=end, mark=mark), **SMALL)
    expected = ImageFolderEpisodes(str(root / "classes"), **SMALL)
    for split in ("train", "val", "test"):
        assert torch.equal(data.episode(0, split, 3).query.x, expected.episode(0, split, 3).query.x)


def test_a_table_can_say_splits_and_groups(flat: tuple[Path, list[str]]) -> None:
    root, lines = flat
    split = {label: ("train", "val", "test")[label // 4] for label in range(12)}
    more = [f"{each},{split[int(each[-2:])]},g{int(each[-2:]) % 2}" for each in lines]
    path = table(root, more, "filename,label,split,group")
    data = ImageFolderEpisodes(str(root / "flat"), labels=path, options=EpisodeOptions(within_groups=True), **SMALL)
    assert data.class_names("val") == ["class04", "class05", "class06", "class07"]
    groups = {data.pool.groups[number] for number in data.splits["train"]}
    assert groups == {"g0", "g1"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines.append("nowhere.png,class00"), "line 74 of .* names nowhere.png, which is not in"),
        (lambda lines: lines.append(lines[0]), "line 74 of .* names class00_0.png again"),
        (lambda lines: lines.append("../labels.csv,class00"), "lies outside of"),
        (lambda lines: lines.append(",class00"), "line 74 of .* has no filename"),
        (lambda lines: lines.append("class00_0.png,"), "line 74 of .* has no label"),
        (lambda lines: lines.clear(), "lists no image"),
    ],
)
def test_a_wrong_table_is_one_line(
    flat: tuple[Path, list[str]], change: Callable[[list[str]], None], message: str
) -> None:
    root, lines = flat
    change(lines)
    with pytest.raises(DataError, match=message):
        ImageFolderEpisodes(str(root / "flat"), labels=table(root, lines), **SMALL).setup()


@pytest.mark.parametrize(
    ("header", "lines", "message"),
    [
        ("file,class", [], "has the columns file,class, but it needs filename,label"),
        (
            "filename,label,split",
            ["class00_0.png,a,dev"],
            "has the split 'dev', but it must be one of train, val, test",
        ),
        ("filename,label,split", ["class00_0.png,a,train", "class00_1.png,a,test"], "puts class a into test"),
    ],
)
def test_wrong_columns_are_one_line(flat: tuple[Path, list[str]], header: str, lines: list[str], message: str) -> None:
    root, _ = flat
    with pytest.raises(DataError, match=message):
        ImageFolderEpisodes(str(root / "flat"), labels=table(root, lines, header), **SMALL).setup()


# ---------------------------------------------------------------- splits
def test_classes_are_split_by_name(tmp_path: Path) -> None:
    root = str(make_folder(tmp_path / "mine"))
    splits = {"train": ["class00", "class03"], "val": ["class01", "class05"], "test": ["class11", "class10"]}
    data = ImageFolderEpisodes(root, splits=splits, **SMALL)
    assert {split: sorted(data.class_names(split)) for split in splits} == {k: sorted(v) for k, v in splits.items()}


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ((0.5, 0.5, 0.5), r"splits is \[0.5, 0.5, 0.5\], .*add up to 1"),
        (
            {"train": ["class00"], "dev": ["class01"]},
            "splits names train, dev, but it must list classes for train, val, test",
        ),
        ({"train": ["class00"], "val": ["class01"], "test": ["nowhere"]}, "lists class nowhere for test"),
        ({"train": ["class00"], "val": ["class01"], "test": ["class00"]}, "lists class class00 for train and test"),
    ],
)
def test_wrong_splits_are_one_line(splits: Any, message: str, tmp_path: Path) -> None:
    root = str(make_folder(tmp_path / "mine", images=3))
    with pytest.raises(ConfigError, match=message):
        ImageFolderEpisodes(root, splits=splits, **SMALL).setup()


def test_a_class_in_two_split_folders_is_one_line(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        make_folder(tmp_path / "mine" / split, classes=3, images=3)
    with pytest.raises(DataError, match="class class00 is in train and again in val"):
        ImageFolderEpisodes(str(tmp_path / "mine"), **SMALL).setup()


# ---------------------------------------------------------------- broken images, and a root that must not be written
def test_a_truncated_image_is_named_and_left_out_only_when_asked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = make_folder(tmp_path / "mine")
    path = root / "class03" / "2.jpg"
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(DataError, match=r"class03/2\.jpg cannot be read"):
        ImageFolderEpisodes(str(root), **SMALL).setup()
    data = ImageFolderEpisodes(str(root), options=EpisodeOptions(skip_broken=True), **SMALL)
    with caplog.at_level(logging.WARNING):
        data.setup()
    assert "class03/2.jpg" in caplog.text
    assert "left out" in caplog.text
    assert data.pool.counts.tolist() == [6] * 12
    for file in (root / "class05").iterdir():
        file.write_bytes(b"not a picture")
    with pytest.raises(DataError, match="class class05 has no image that can be read"):
        ImageFolderEpisodes(str(root), options=EpisodeOptions(skip_broken=True), **SMALL).setup()


def test_nothing_is_written_below_the_root(tmp_path: Path) -> None:
    """So that it may be a share that cannot be written."""
    root = make_folder(tmp_path / "mine")
    for folder in (root, *root.iterdir()):
        folder.chmod(0o555)
    before = sorted((str(path), path.stat().st_mtime_ns) for path in root.rglob("*"))
    ImageFolderEpisodes(str(root), **SMALL).prepare_data()
    assert sorted((str(path), path.stat().st_mtime_ns) for path in root.rglob("*")) == before
    for folder in (root, *root.iterdir()):
        os.chmod(folder, 0o755)
