"""tieredImageNet and CUB-200-2011 in the forms that people hold."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from metalearn import DataError
from metalearn.datamodules import CUB200DataModule, TieredImageNetDataModule

SIDE, IMAGES = 12, 3
SPLITS = ("train", "val", "test")


def pixels_of(label: int, index: int) -> np.ndarray:
    return np.random.default_rng([label, index]).integers(0, 256, (SIDE, SIDE, 3), np.uint8)


def png(label: int, index: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels_of(label, index)).save(file, "png")
    return file.getvalue()


def tiered(form: str, **edits: Any) -> dict[str, bytes]:
    """6 classes of 2 categories in each split; labels begin at 0 in each, images are in no order."""
    files: dict[str, bytes] = {}
    for place, split in enumerate(SPLITS):
        pairs = [(label, index) for index in range(IMAGES) for label in (3, 0, 5, 1, 4, 2)]
        if form == "folders":
            for label, index in pairs:
                files[f"{split}/n{place}{label}/{index}.png"] = png(10 * place + label, index)
            continue
        table = {
            "label_specific": np.array([label for label, _ in pairs]),
            "label_general": np.array([label // 3 for label, _ in pairs]),
            "label_specific_str": [f"n{place}{label}" for label in range(6)],
            "label_general_str": [f"category {place}{group}" for group in range(2)],
        }
        protocol = 2
        if form == "bytes":
            table = {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in table.items()}
            protocol = 4
        files[f"{split}_labels.pkl"] = pickle.dumps({**table, **edits.get(f"{split}_labels", {})}, protocol)
        if form in ("npz", "packed npz"):
            file = io.BytesIO()
            save = np.savez if form == "npz" else np.savez_compressed
            save(file, images=np.stack([pixels_of(10 * place + label, index) for label, index in pairs]))
            files[f"{split}_images.npz"] = file.getvalue()
        else:
            images: Any = [png(10 * place + label, index) for label, index in pairs]
            if form == "arrays":
                images = [np.frombuffer(data, np.uint8)[:, None] for data in images]
            elif form == "object array":
                found = np.empty(len(images), object)
                found[:] = images
                images = found
            files[f"{split}_images_png.pkl"] = pickle.dumps(edits.get(f"{split}_images", images), protocol)
    return files


def write(root: Path, files: dict[str, bytes], kind: str = "folder") -> Path:
    root.mkdir()
    if kind == "zip":
        with zipfile.ZipFile(root / "all.zip", "w", zipfile.ZIP_DEFLATED) as file:
            for name, data in files.items():
                file.writestr(f"tiered-imagenet/{name}", data)
    elif kind in ("tar", "tgz"):
        with tarfile.open(root / f"all.{kind}", "w" if kind == "tar" else "w:gz") as archive:
            for name, data in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    else:
        for name, data in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(data)
    return root


def module(kind: Any, root: Path) -> Any:
    return kind(str(root), ways=3, queries=2, image_size=SIDE, cache_dir=str(root.parent / "cache"))


def episodes(data: Any) -> torch.Tensor:
    return torch.cat([data.episode(0, split, index).query.x for split in SPLITS for index in range(3)])


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    return episodes(module(TieredImageNetDataModule, write(tmp_path_factory.mktemp("a") / "root", tiered("folders"))))


FORMS = [(form, "folder") for form in ("bytes", "arrays", "object array", "npz", "packed npz")]
FORMS += [("arrays", "zip"), ("arrays", "tar"), ("bytes", "tar"), ("folders", "tar"), ("folders", "zip")]


@pytest.mark.parametrize(("form", "kind"), FORMS)
def test_every_form_of_tiered_imagenet_gives_the_same_episodes(
    form: str, kind: str, expected: torch.Tensor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = module(TieredImageNetDataModule, write(tmp_path / "root", tiered(form), kind))
    assert torch.equal(episodes(data), expected)
    listed = data.list_classes()
    assert [each.name for each in listed] == [f"n{place}{label}" for place in range(3) for label in range(6)]
    if form != "folders":
        groups = [f"category {place}{label // 3}" for place in range(3) for label in range(6)]
        assert [each.group for each in listed] == groups
    assert (
        f"tieredImageNet in {tmp_path / 'root'} has 6/6/6 classes, published are 351/97/160: accuracies do not compare"
        in caplog.text
    )


def test_classes_of_one_name_are_told_apart(tmp_path: Path) -> None:
    edits = {"val_labels": {"label_specific_str": [b"crane", b"crane", b"a", b"b", b"c", b"d"]}}
    listed = module(TieredImageNetDataModule, write(tmp_path / "root", tiered("bytes", **edits))).list_classes()
    assert [each.name for each in listed if each.split == "val"] == ["crane 1", "crane 2", "a", "b", "c", "d"]


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch evil",)


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "code": ({"train_images": [Evil()]}, "train_images_png.pkl asks for .*system.* nothing is run"),
    "code in labels": ({"val_labels": {"label_general": Evil()}}, "val_labels.pkl asks for .*system"),
    "count": ({"train_images": [b"x"]}, "train_images_png.pkl holds 1 images, but there are 18 labels; fetch both"),
    "no list": ({"train_images": 7}, "train_images_png.pkl holds a int, but there are 18 labels"),
    "no image": ({"train_images": [b"x"] * 18}, "image 1 in .*train_images_png.pkl cannot be read"),
    "no file": ({"train_images": [7] * 18}, "image 1 in .*train_images_png.pkl is a int, but images must be PNG"),
    "no labels": (
        {"val_labels": {"label_specific": None}},
        "val_labels.pkl .*labels no image|labels in .*val_labels.pkl",
    ),
    "short groups": (
        {"val_labels": {"label_general": [0]}},
        "labels in .*val_labels.pkl are int64 .1., but there must be",
    ),
    "two categories": ({"val_labels": {"label_general": [0, 1] * 9}}, "val_labels.pkl has class . in 2 categories"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_tiered_imagenet_is_one_line(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    edits, message = FAULTS[fault]
    if fault == "two categories":
        edits["val_labels"]["label_general"] = np.arange(18) // 9
    with pytest.raises(DataError, match=message) as caught:
        module(TieredImageNetDataModule, write(tmp_path / "root", tiered("arrays", **edits))).prepare_data()
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "evil").exists()


def test_an_npz_of_objects_is_not_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files = tiered("npz")
    file = io.BytesIO()
    np.savez(file, images=np.array([Evil()], object))
    for data, message in ((file.getvalue(), "holds Python objects"), (files["val_images.npz"][:-50], "cannot be read")):
        root = write(tmp_path / message.replace(" ", ""), {**files, "train_images.npz": data})
        with pytest.raises(DataError, match=message):
            module(TieredImageNetDataModule, root).prepare_data()
    assert not (tmp_path / "evil").exists()


def cub(above: str = "CUB_200_2011/images/", classes: int = 200) -> dict[str, bytes]:
    more = {"CUB_200_2011/README": b"", "CUB_200_2011/images.txt": b""} if above.startswith("CUB") else {}
    return more | {
        f"{above}{label + 1:03d}.Bird_{label}/Bird_{index:04d}.png": png(label, index)
        for label in range(classes)
        for index in range(IMAGES)
    }


def test_cub_is_split_as_by_chen_et_al(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = module(CUB200DataModule, write(tmp_path / "root", cub()))
    expected = episodes(data)
    numbers = {split: [int(name[:3]) - 1 for name in data.class_names(split)] for split in SPLITS}
    assert numbers == {"train": [*range(0, 200, 2)], "val": [*range(1, 200, 4)], "test": [*range(3, 200, 4)]}
    assert not caplog.text
    assert torch.equal(episodes(module(CUB200DataModule, write(tmp_path / "tar", cub(), "tar"))), expected)
    for above in ("images/", ""):
        found = module(CUB200DataModule, write(tmp_path / f"at {above[:1]}", cub(above)))
        assert [each.name for each in found.list_classes()] == [each.name for each in data.list_classes()]


def test_a_part_of_cub_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    module(CUB200DataModule, write(tmp_path / "root", cub("images/", 20))).list_classes()
    assert f"CUB-200-2011 in {tmp_path / 'root'} has 20 of its 200 classes: accuracies do not compare" in caplog.text


def test_the_official_tgz_of_cub_is_answered_with_its_remedy(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"all.tgz is compressed as a whole.*decompress it with: gunzip .*all.tgz"
    ) as caught:
        module(CUB200DataModule, write(tmp_path / "root", cub(classes=8), "tgz")).prepare_data()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [CUB200DataModule, TieredImageNetDataModule])
def test_nothing_is_one_line(kind: Any, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    with pytest.raises(DataError, match=f"root .* holds no {kind.title}: it must hold .*set data.root to it") as caught:
        module(kind, tmp_path / "root").prepare_data()
    assert "\n" not in str(caught.value)
