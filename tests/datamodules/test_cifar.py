"""CIFAR-FS and FC100: their published splits, from CIFAR-100's own files and from what people make of them."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.datasets.utils
from PIL import Image

from metalearn import DataError
from metalearn.datamodules import CIFARFSDataModule, FC100DataModule
from metalearn.datamodules.sources.published import CIFAR_FS, FC100, SUPERCLASSES

NAMES = sorted(name for names in SUPERCLASSES.values() for name in names)
GROUPS = sorted(SUPERCLASSES)
GROUP_OF = {name: group for group, names in SUPERCLASSES.items() for name in names}
SPLITS = ("train", "val", "test")
MODULES = [CIFARFSDataModule, FC100DataModule]
Module = type[CIFARFSDataModule] | type[FC100DataModule]


def pixels_of(label: int, index: int) -> np.ndarray:
    return np.random.default_rng([label, index]).integers(0, 256, (32, 32, 3), np.uint8)


def write_official(root: Path, **edits: Any) -> Path:
    """CIFAR-100 with 2 training images a class and 1 test image, in the order of neither."""
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    meta = {"fine_label_names": NAMES, "coarse_label_names": GROUPS}
    (folder / "meta").write_bytes(pickle.dumps({**meta, **edits.get("meta", {})}, 2))
    for part, indices in (("train", (0, 1)), ("test", (2,))):
        pairs = [(label, index) for index in indices for label in reversed(range(100))]
        content = {
            b"data": np.stack([pixels_of(*pair).transpose(2, 0, 1).reshape(-1) for pair in pairs]),
            b"fine_labels": [label for label, _ in pairs],
            b"coarse_labels": [GROUPS.index(GROUP_OF[NAMES[label]]) for label, _ in pairs],
            b"filenames": [f"{NAMES[label]}_s_{index:06d}.png".encode() for label, index in pairs],
        }
        (folder / part).write_bytes(pickle.dumps({**content, **edits.get(part, {})}, 2))
    return root


def png(label: int, index: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels_of(label, index)).save(file, "png")
    return file.getvalue()


def write_folders(root: Path, published: dict[str, tuple[str, ...]], form: str) -> Path:
    """As Bertinetto et al. share it, or by split."""
    for split, names in published.items():
        for name in names:
            folder = root / "cifar100" / ("data" if form == "classes" else split) / name
            folder.mkdir(parents=True)
            for index in range(3):
                (folder / f"{index}.png").write_bytes(png(NAMES.index(name), index))
    return root


def write_pickles(root: Path, published: dict[str, tuple[str, ...]], stem: str) -> Path:
    root.mkdir()
    for split, names in published.items():
        labels = [NAMES.index(name) for name in sorted(names) for _ in range(3)]
        images = np.stack([pixels_of(NAMES.index(name), index) for name in sorted(names) for index in range(3)])
        (root / f"{stem}_{split}.pickle").write_bytes(pickle.dumps({"data": images, "labels": labels}))
    return root


def module(kind: Module, root: Path, **more: Any) -> CIFARFSDataModule | FC100DataModule:
    return kind(str(root), ways=3, queries=2, cache_dir=str(root.parent / "cache"), download=False, **more)


def episodes(data: CIFARFSDataModule | FC100DataModule) -> torch.Tensor:
    return torch.cat([data.episode(0, split, index).query.x for split in SPLITS for index in range(3)])


def test_the_published_splits() -> None:
    assert [len(GROUPS), len(set(NAMES)), {len(names) for names in SUPERCLASSES.values()}] == [20, 100, {5}]
    assert " ".join(CIFAR_FS["val"]) == (
        "beaver beetle butterfly camel cattle crab crocodile flatfish lamp maple_tree motorcycle otter sea shark television "
        "tractor"
    )
    assert " ".join(CIFAR_FS["test"]) == (
        "baby bed bicycle chimpanzee fox leopard man pickup_truck plain poppy rocket rose snail sweet_pepper table telephone "
        "wardrobe whale woman worm"
    )
    assert set(CIFAR_FS["train"]) == set(NAMES) - set(CIFAR_FS["val"]) - set(CIFAR_FS["test"])
    groups = {split: {GROUP_OF[name] for name in names} for split, names in FC100.items()}
    assert groups["val"] == {
        "large_carnivores", "large_omnivores_and_herbivores", "non-insect_invertebrates", "small_mammals"
    }  # fmt: skip
    assert groups["test"] == {"aquatic_mammals", "insects", "medium_mammals", "people"}
    assert groups["train"] == set(GROUPS) - groups["val"] - groups["test"]
    assert {split: len(names) for split, names in CIFAR_FS.items()} == {"train": 64, "val": 16, "test": 20}
    assert {split: len(names) for split, names in FC100.items()} == {"train": 60, "val": 20, "test": 20}


@pytest.mark.parametrize("kind", MODULES)
def test_every_form_gives_the_same_episodes(kind: Module, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    published = kind.published.split
    data = module(kind, write_official(tmp_path / "official"))
    data.prepare_data()
    expected = episodes(data)
    assert expected.shape == (54, 3, 32, 32)
    listed = data.list_classes()
    assert {split: tuple(each.name for each in listed if each.split == split) for split in SPLITS} == published
    assert {each.name: each.group for each in listed} == GROUP_OF
    assert {len(each.entries) for each in listed} == {3}
    for form in ("classes", "splits"):
        found = module(kind, write_folders(tmp_path / form, published, form))
        assert torch.equal(episodes(found), expected)
        assert {each.name: each.group for each in found.list_classes()} == GROUP_OF
    stem = "FC100" if kind is FC100DataModule else "CIFAR_FS"
    assert torch.equal(episodes(module(kind, write_pickles(tmp_path / "pickles", published, stem))), expected)
    with zipfile.ZipFile(tmp_path / "all.zip", "w", zipfile.ZIP_DEFLATED) as file:
        for path in (tmp_path / "official" / "cifar-100-python").iterdir():
            file.write(path, f"cifar-100-python/{path.name}")
    assert torch.equal(episodes(module(kind, tmp_path / "all.zip")), expected)
    assert torch.equal(episodes(module(kind, tmp_path / "official" / "cifar-100-python")), expected)
    assert "compare" not in caplog.text


def test_another_split_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    module(CIFARFSDataModule, write_folders(tmp_path / "root", FC100, "splits")).list_classes()
    assert f"CIFAR-FS in {tmp_path / 'root'}: the classes are the published ones, but" in caplog.text


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch evil",)


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "code": ({"test": {"more": Evil()}}, "cifar-100-python/test asks for .*system.* nothing is run"),
    "names": (
        {"meta": {"fine_label_names": NAMES[1:]}},
        "meta does not name the 100 classes of CIFAR-100 .it differs in apple",
    ),
    "no names": ({"meta": {"fine_label_names": None}}, "meta does not name the 100 classes"),
    "shape": ({"train": {b"data": np.zeros((200, 1024), np.uint8)}}, r"data in .*train are not uint8 \[n, 3072\]"),
    "labels": (
        {"train": {b"fine_labels": [0]}},
        r"labels in .*train are int64 \[1\], but there must be .* each of 200",
    ),
    "range": ({"test": {b"fine_labels": [100] * 100}}, "run from 100 to 100, but there are 100 classes"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_line(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    edits, message = FAULTS[fault]
    with pytest.raises(DataError, match=message) as caught:
        module(CIFARFSDataModule, write_official(tmp_path / "root", **edits)).prepare_data()
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "evil").exists()


def test_what_is_missing_is_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = []

    def fetch(url: str, root: str, filename: str, md5: str) -> None:
        asked.append((url.rpartition("/")[2], md5))
        if len(asked) == 1:
            raise OSError("no network")
        write_official(Path(root))

    monkeypatch.setattr(torchvision.datasets.utils, "download_and_extract_archive", fetch)
    root = tmp_path / "root"
    data = FC100DataModule(str(root), ways=3, queries=2, cache_dir=str(tmp_path / "cache"))
    with pytest.raises(DataError, match=r"CIFAR-100 is not in .* cannot be downloaded from .*no network.*other means"):
        data.prepare_data()
    with pytest.raises(DataError, match=r"root .* does not exist"):
        module(FC100DataModule, root).prepare_data()
    data.prepare_data()
    assert asked == [("cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85")] * 2
    data.prepare_data()
    assert len(asked) == 2
    assert "meta is not the official file" in caplog.text
    assert data.episode(0, "test", 0).support.x.shape == (3, 3, 32, 32)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        torchvision.datasets.utils, "download_and_extract_archive", lambda *_, **__: pytest.fail("asked")
    )
    (tmp_path / "mine.txt").touch()
    with pytest.raises(DataError, match="holds no CIFAR-FS: it must hold cifar-100-python/"):
        CIFARFSDataModule(str(tmp_path), cache_dir=str(tmp_path / "cache")).prepare_data()
