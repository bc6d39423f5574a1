"""Omniglot with something missing is refused: a gap would move classes from one split to another."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import pytest

from metalearn import ConfigError, DataError
from metalearn.datamodules import EpisodeOptions, OmniglotDataModule
from metalearn.datamodules.sources.alphabets import ALPHABETS, list_characters
from tests.made import make_omniglot


def make_whole(root: Path) -> Path:
    """All 1,623 characters, one drawing each: one picture under many names."""
    one = make_omniglot(root / "one", alphabets=2, characters=1, drawings=1) / "images_background.zip"
    with zipfile.ZipFile(one) as file:
        picture = file.read(file.namelist()[0])
    (root / "images_background").mkdir()
    (root / "picture.png").write_bytes(picture)
    for name in sorted(list_characters()):
        folder = root / "images_background" / name
        folder.mkdir(parents=True)
        os.link(root / "picture.png", folder / "0001_01.png")
    other = root / "images_evaluation"
    other.mkdir()
    for alphabet in list(ALPHABETS)[30:]:
        (root / "images_background" / alphabet).rename(other / alphabet)
    return root


def opened(root: Path, tmp_path: Path) -> OmniglotDataModule:
    data = OmniglotDataModule(str(root), cache_dir=str(tmp_path / "cache"))
    data.setup()
    return data


def test_the_table_is_omniglot() -> None:
    counts = list(ALPHABETS.values())
    assert (len(counts), sum(counts[:30]), sum(counts[30:]), len(list_characters())) == (50, 964, 659, 1623)


def test_a_missing_or_foreign_character_is_named(tmp_path: Path) -> None:
    root = make_whole(tmp_path / "root")
    lost = root / "images_evaluation" / "Tengwar" / "character07"
    lost.rename(root / "images_evaluation" / "Tengwar" / "character77")
    with pytest.raises(DataError, match=r"lacks Tengwar/character07: it has 1623 characters, .*get the official"):
        opened(root, tmp_path)
    (lost.parent / "character77").rename(root / "aside")
    with pytest.raises(DataError, match=r"lacks Tengwar/character07: it has 1622 characters"):
        opened(root, tmp_path)
    (root / "aside").rename(lost)
    (root / "images_background" / "Mine" / "character01").mkdir(parents=True)
    os.link(root / "picture.png", root / "images_background" / "Mine" / "character01" / "0001_01.png")
    with pytest.raises(DataError, match=r"has Mine/character01, which is none of its 1623 characters; remove it"):
        opened(root, tmp_path)
    assert not (tmp_path / "cache").exists()


def test_an_archive_that_lacks_an_alphabet_names_its_characters(tmp_path: Path) -> None:
    root = make_whole(tmp_path / "root")
    for part in ("images_background", "images_evaluation"):
        with zipfile.ZipFile(root / f"{part}.zip", "w") as file:
            for path in sorted((root / part).rglob("*.png")):
                if "Braille" not in path.parts:
                    file.write(path, path.relative_to(root))
        (root / part).rename(root / f"{part}_aside")
    with pytest.raises(
        DataError, match=r"lacks Braille/character01, .*03 and 23 more: it has 1597 characters"
    ) as caught:
        opened(root, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [8, 20])
def test_a_missing_drawing_is_named_in_a_small_set_too(size: int, tmp_path: Path) -> None:
    root = make_omniglot(tmp_path / "root", characters=size, archive=False)
    (root / "images_background" / "Alphabet_1" / "character03" / "0002_07.png").unlink()
    with pytest.raises(DataError, match=r"character Alphabet_1/character03 .*lacks \*_07\.png, .*the same 20 drawings"):
        opened(root, tmp_path)
    (root / "images_background" / "Alphabet_1" / "character03" / "0002_07.png").write_bytes(b"no matter")
    (root / "images_background" / "Alphabet_1" / "character03" / "0002_07 copy.png").write_bytes(b"no matter")
    with pytest.raises(DataError, match=r"character Alphabet_1/character03 .*has 21 drawings"):
        opened(root, tmp_path)


def test_archive_and_tree_hold_the_same(tmp_path: Path) -> None:
    episodes = []
    for name, archive in (("zip", True), ("tree", False)):
        root = make_omniglot(tmp_path / name, characters=8, archive=archive)
        episodes.append(OmniglotDataModule(str(root), cache_dir=str(tmp_path / f"cache{name}")).episode(0, "train", 5))
    assert (episodes[0].support.x == episodes[1].support.x).all()
    assert episodes[0].support.x.max() == 1
    assert episodes[0].support.x.mean() < 0.7  # strokes are bright


def broken_missing(root: Path) -> str:
    (root / "images_evaluation.zip").unlink()
    return "images_evaluation is not in"


def broken_truncated(root: Path) -> str:
    path = root / "images_evaluation.zip"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return "images_evaluation.zip cannot be read .*truncated"


def broken_foreign(root: Path) -> str:
    with zipfile.ZipFile(root / "images_evaluation.zip", "w") as file:
        file.writestr("something/else.png", b"x")
    return "holds no images_evaluation/ALPHABET"


def broken_evil(root: Path) -> str:
    with zipfile.ZipFile(root / "images_evaluation.zip", "a") as file:
        file.writestr("../../etc/evil.png", b"x")
    return "entry '../../etc/evil.png' leads out of the archive"


def broken_image(root: Path) -> str:
    path = root / "images_evaluation.zip"
    with zipfile.ZipFile(path) as file:
        entries = {name: file.read(name) for name in file.namelist()}
    entries["images_evaluation/Alphabet_4/character03/0002_07.png"] = b"not a picture"
    with zipfile.ZipFile(path, "w") as file:
        for name, data in entries.items():
            file.writestr(name, data)
    return "0002_07.png cannot be read"


@pytest.mark.parametrize("damage", [broken_missing, broken_truncated, broken_foreign, broken_evil, broken_image])
def test_broken_archives_are_one_line(damage: Any, tmp_path: Path) -> None:
    root = make_omniglot(tmp_path / "root", characters=8)
    message = damage(root)
    with pytest.raises(DataError, match=message) as caught:
        OmniglotDataModule(str(root), cache_dir=str(tmp_path / "cache")).setup()
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").glob("*.store")) if (tmp_path / "cache").exists() else True


def test_a_failed_download_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import Omniglot

    monkeypatch.setattr(Omniglot, "download_url_prefix", "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(DataError, match="cannot be downloaded .*set data.root"):
        OmniglotDataModule(str(tmp_path)).prepare_data()


@pytest.mark.parametrize("within_groups", [False, True])
def test_alphabets_are_split_and_nobody_draws_for_both_sets(within_groups: bool, omniglot: Path) -> None:
    """Lake's protocol: the evaluation alphabets are the test's, and a task is drawn by two people."""
    options = EpisodeOptions(within_groups=within_groups, aligned=True)
    data = OmniglotDataModule(str(omniglot), split="alphabets", ways=20, shots=1, queries=1, options=options)
    data.setup()
    groups = {part: {data.pool.groups[number] for number in data.splits[part]} for part in ("train", "val", "test")}
    assert groups["test"] == {"Alphabet_3", "Alphabet_4", "Alphabet_5"}
    assert groups["train"] | groups["val"] == {"Alphabet_0", "Alphabet_1", "Alphabet_2"}
    assert len(groups["val"]) == 1
    assert data.num_classes("train") == 160
    pairs = set()
    for index in range(200):
        rows = data.task_rows(0, "test", index)
        support, query = ({*(part % 20).tolist()} for part in (rows.support, rows.query))
        assert len(support) == len(query) == 1
        assert support != query
        pairs.add((*support, *query))
        alphabets = {data.pool.groups[number] for number in rows.support // 20}
        assert not within_groups or len(alphabets) == 1
        assert len(rows.support) == 20
    assert len(pairs) > 100
    episode = data.draw(0, "test", [0, 1])
    assert episode.query.x.shape == (2, 20, 1, 28, 28)


def test_an_unknown_split_is_one_line() -> None:
    with pytest.raises(ConfigError, match="split is 'lake'"):
        OmniglotDataModule(split="lake")  # type: ignore[arg-type]
