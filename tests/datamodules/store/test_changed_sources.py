"""Sources that change, and sources side by side: what is packed is what is there now."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metalearn import ConfigError, DataError
from metalearn.datamodules import ImageFolderEpisodes, MiniImageNetDataModule, OmniglotDataModule
from metalearn.datamodules.episodes.image_episodes import ImageEpisodes

CLASSES, DRAWINGS, SIDE = 24, 3, 12
CHOICE = {"ways": 2, "shots": 1, "queries": 2, "image_size": SIDE}


def picture(label: int, index: int, flip: bool) -> bytes:
    """An uncompressed picture: as many bytes whatever it shows."""
    pixels = np.random.default_rng([label, index]).integers(0, 255, (SIDE, SIDE), np.uint8)
    file = io.BytesIO()
    Image.fromarray(255 - pixels if flip else pixels).save(file, "png", compress_level=0)
    return file.getvalue()


def name_of(kind: str, label: int, index: int) -> str:
    if kind == "omniglot":
        part = "images_background" if label % 2 else "images_evaluation"
        return f"{part}/Alphabet_{label % 2}/character{label:02d}/{label:04d}_{index:02d}.png"
    if kind == "mini_table":
        return f"images/{label}_{index}.png"
    folder = f"{('train', 'val', 'test')[label % 3]}/" if kind == "mini_tree" else ""
    return f"{folder}{label:02d}/{index}.png"


def write(root: Path, kind: str, archive: bool, flip: bool) -> None:
    """A tiny data set: ``flip`` changes every pixel, and no size."""
    files = {name_of(kind, a, b): picture(a, b, flip) for a in range(CLASSES) for b in range(DRAWINGS)}
    if kind == "mini_table":
        for place, split in enumerate(("train", "val", "test")):
            rows = [f"{label}_{index}.png,{label}" for label in range(place, CLASSES, 3) for index in range(DRAWINGS)]
            files[f"{split}.csv"] = "\n".join(["filename,label", *rows]).encode()
    root.mkdir(exist_ok=True)
    if not archive:
        for name, data in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(data)
        return
    for stem in ("images_background", "images_evaluation") if kind == "omniglot" else ("all",):
        with zipfile.ZipFile(root / f"{stem}.zip", "w") as file:
            for name, data in files.items():
                if kind != "omniglot" or name.startswith(stem):
                    file.writestr(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), data)
        os.utime(root / f"{stem}.zip", ns=(0, 0))


def made(root: Path, kind: str, cache: Path, **more: int) -> ImageEpisodes:
    choice = {**CHOICE, **more}
    if kind == "folder":
        return ImageFolderEpisodes(str(root), channels=1, cache_dir=str(cache), **choice)  # type: ignore[arg-type]
    module = OmniglotDataModule if kind == "omniglot" else MiniImageNetDataModule
    return module(str(root), cache_dir=str(cache), **choice)  # type: ignore[arg-type]


KINDS = [("folder", False), ("omniglot", False), ("omniglot", True), ("mini_tree", False), ("mini_table", False),
         ("mini_table", True)]  # fmt: skip


@pytest.mark.parametrize(("kind", "archive"), KINDS)
def test_an_edit_that_keeps_every_size_is_noticed(kind: str, archive: bool, tmp_path: Path) -> None:
    root, cache = tmp_path / "root", tmp_path / "cache"
    write(root, kind, archive, flip=False)
    sizes = {path: path.stat().st_size for path in root.rglob("*") if path.is_file()}
    before = made(root, kind, cache).episode(0, "train", 0).support.x
    assert (made(root, kind, cache).episode(0, "train", 0).support.x == before).all()
    write(root, kind, archive, flip=True)
    assert sizes == {path: path.stat().st_size for path in root.rglob("*") if path.is_file()}
    after = made(root, kind, cache).episode(0, "train", 0).support.x
    assert ((after + before - 1).abs() < 1e-6).all()


@pytest.mark.parametrize(("kind", "archive"), KINDS)
def test_two_roots_do_not_evict_each_other(kind: str, archive: bool, tmp_path: Path) -> None:
    """The episodes of a root, in a worker that opens the store anew too, stay while another root is in use."""
    cache = tmp_path / "cache"
    for name, flip in (("one", False), ("two", True)):
        write(tmp_path / name, kind, archive, flip)
    first = made(tmp_path / "one", kind, cache)
    before = first.episode(0, "train", 0).support.x
    dataset = pickle.dumps(first.train_dataloader().dataset)
    stores = {path: path.stat().st_mtime_ns for path in cache.glob("*.store")}
    assert not torch.equal(made(tmp_path / "two", kind, cache).episode(0, "train", 0).support.x, before)
    assert torch.equal(pickle.loads(dataset)[0].support.x[0], before)
    assert torch.equal(made(tmp_path / "one", kind, cache).episode(0, "train", 0).support.x, before)
    assert len(list(cache.glob("*.store"))) == 2
    assert {path: path.stat().st_mtime_ns for path in stores} == stores


@pytest.mark.parametrize("kind", ["omniglot", "mini_table"])
@pytest.mark.parametrize(("offset", "change"), [(8, 99), (60, 255)], ids=["method", "checksum"])
def test_a_damaged_entry_is_one_line(kind: str, offset: int, change: int, tmp_path: Path) -> None:
    """An entry packed by a method that zipfile does not know, and one with a bit changed."""
    write(tmp_path / "root", kind, archive=True, flip=False)
    path = max((tmp_path / "root").glob("*.zip"))
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as file:
        entry = next(info for info in file.infolist() if info.filename.endswith(".png"))
    if offset == 8:
        offset = data.find(b"PK\x01\x02") + 10  # the central directory's first entry, which is a picture
    else:
        offset += entry.header_offset + 30 + len(entry.filename)
    data[offset] ^= change
    path.write_bytes(data)
    with pytest.raises(
        DataError, match=f"{entry.filename.rpartition('/')[2]} is damaged .*fetch the archive again"
    ) as caught:
        made(tmp_path / "root", kind, tmp_path / "cache").prepare_data()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("kind", "archive"), KINDS)
@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"ways": 25}, "ways is 25, but the"),
        ({"queries": 3}, r"shots \+ queries is 1 \+ 3 = 4, but class .* has 3 images"),
    ],
)
def test_too_much_is_asked_before_anything_is_packed(
    kind: str, archive: bool, more: dict[str, int], message: str, tmp_path: Path
) -> None:
    write(tmp_path / "root", kind, archive, flip=False)
    with pytest.raises(ConfigError, match=message):
        made(tmp_path / "root", kind, tmp_path / "cache", **more).prepare_data()
    assert not (tmp_path / "cache").exists()
