"""miniImageNet in every form that people hold: the same images are the same episodes; faults are one line."""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metalearn import ConfigError, DataError
from metalearn.datamodules import MiniImageNetDataModule
from metalearn.datamodules.sources.published import MINI_IMAGENET
from tests.datamodules.made_miniimagenet import (
    SIDE,
    SPLITS,
    Files,
    below,
    cache,
    labels_of,
    pixels_of,
    png,
    table,
    tree,
    write_folder,
    write_tar,
    write_zip,
)


def module(root: Path, **more: Any) -> MiniImageNetDataModule:
    cache_dir = str(root.parent / "cache")
    choice = {"ways": 2, "queries": 2, "image_size": SIDE, "cache_dir": cache_dir}
    return MiniImageNetDataModule(str(root), **{**choice, **more})


def episodes(data: MiniImageNetDataModule) -> torch.Tensor:
    return torch.cat([data.episode(0, split, index)[0].x for split in SPLITS for index in range(3)])


FORMS: dict[str, tuple[Callable[[Path, Files], Path], Files, str]] = {
    "table": (write_folder, table(), "images/ with train.csv"),
    "tree": (write_folder, tree(), "train/, val/ and test/"),
    "tree with validation": (write_folder, tree("validation"), "train/, val/ and test/"),
    "cache": (write_folder, cache(), "mini-imagenet-cache-train.pkl"),
    "cache of learn2learn": (
        write_folder,
        cache(words=("train", "validation", "test")),
        "mini-imagenet-cache-train.pkl",
    ),
    "cache of floats": (write_folder, cache(change=lambda images: images.astype(np.float32)), "cache"),
    "cache of whole numbers": (write_folder, cache(change=lambda images: images.astype(np.int64), protocol=4), "cache"),
    "cache of channels first": (write_folder, cache(change=lambda images: images.transpose(0, 3, 1, 2)), "cache"),
    "cache with labels": (write_folder, cache("{}.pkl", labelled=True, protocol=5), "cache"),
    "cache by category": (
        write_folder,
        cache("miniImageNet_category_split_{}.pickle", ("train_phase_train", "val", "test"), True),
        "cache",
    ),
    "below": (write_folder, below(cache()), "cache"),
    "zip of table": (write_zip, table(), "images/ with train.csv"),
    "zip of tree below": (write_zip, below(tree()), "train/, val/ and test/"),
    "zip of cache": (write_zip, cache(), "cache"),
    "tar of table below": (write_tar, below(table()), "images/ with train.csv"),
    "tar of tree": (write_tar, tree(), "train/, val/ and test/"),
    "tar of cache below": (write_tar, below(cache()), "cache"),
}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    return episodes(module(write_folder(tmp_path_factory.mktemp("expected") / "root", tree())))


@pytest.mark.parametrize("form", FORMS)
def test_the_same_images_are_the_same_episodes(
    form: str, expected: torch.Tensor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write, files, said = FORMS[form]
    root = write(tmp_path / "root", files)
    with caplog.at_level(logging.INFO, logger="metalearn"):
        data = module(root)
        data.prepare_data()
        data.setup()
    assert caplog.text.count(f"miniImageNet in {root}") == 1  # said once, however often it is looked at
    assert said in caplog.text
    assert torch.equal(episodes(data), expected)
    assert {split: data.class_names(split) for split in SPLITS} == {
        split: [f"n{label}" for label in labels_of(split)] for split in SPLITS
    }


@pytest.mark.parametrize("suffix", ["zip", "tar"])
def test_root_may_be_the_archive_itself(suffix: str, expected: torch.Tensor, tmp_path: Path) -> None:
    root = (write_zip if suffix == "zip" else write_tar)(tmp_path / "root", tree())
    assert torch.equal(episodes(module(root / f"all.{suffix}", cache_dir=str(tmp_path / "cache"))), expected)


@pytest.mark.parametrize("form", ["tree", "cache", "cache of floats", "tar of table below"])
def test_other_sizes_are_resized_alike(form: str, tmp_path: Path) -> None:
    write, files, _ = FORMS[form]
    found = module(write(tmp_path / "root", files), image_size=20).episode(0, "train", 0).support.x
    reference = module(write_folder(tmp_path / "reference", table()), image_size=20).episode(0, "train", 0).support.x
    assert found.shape == (2, 3, 20, 20)
    assert torch.equal(found, reference)


@pytest.mark.parametrize("writer", [write_folder, write_tar])
def test_an_edited_cache_is_packed_again(writer: Callable[[Path, Files], Path], tmp_path: Path) -> None:
    before = episodes(module(writer(tmp_path / "root", cache())))
    for path in (tmp_path / "root").iterdir():
        path.unlink()
    (tmp_path / "root").rmdir()
    writer(tmp_path / "root", cache(change=lambda images: 255 - images))
    assert torch.allclose(episodes(module(tmp_path / "root")), 1 - before)


def test_the_published_split_is_ravi_and_larochelles() -> None:
    assert {split: len(names) for split, names in MINI_IMAGENET.items()} == {"train": 64, "val": 16, "test": 20}
    assert len({name for names in MINI_IMAGENET.values() for name in names}) == 100
    assert {"n01532829", "n13133613", "n09246464"} <= set(MINI_IMAGENET["train"])
    assert " ".join(MINI_IMAGENET["val"]) == (
        "n01855672 n02091244 n02114548 n02138441 n02174001 n02950826 n02971356 n02981792 n03075370 n03417042 n03535780 "
        "n03584254 n03770439 n03773504 n03980874 n09256479"
    )
    assert " ".join(MINI_IMAGENET["test"]) == (
        "n01930112 n01981276 n02099601 n02110063 n02110341 n02116738 n02129165 n02219486 n02443484 n02871525 n03127925 "
        "n03146219 n03272010 n03544143 n03775546 n04146614 n04149813 n04418357 n04522168 n07613480"
    )


def published(split_of: Callable[[str, str], str]) -> Files:
    image = png(pixels_of(0, 0))
    return {
        f"{split_of(name, split)}/{name}/{index}.png": image
        for split, names in MINI_IMAGENET.items()
        for name in names
        for index in range(3)
    }


@pytest.mark.parametrize(
    ("split_of", "message"),
    [
        (lambda name, split: split, ""),
        (lambda name, split: "val" if name == "n01532829" else split,
         "classes are the published ones, but 1 are in another split (n01532829 in val, published in train): accuracies do not"),
    ],
)  # fmt: skip
def test_a_foreign_split_is_said(
    split_of: Callable[[str, str], str], message: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = module(write_folder(tmp_path / "root", published(split_of)))
    listed = data.list_classes()
    if not message:
        assert "compare" not in caplog.text
        assert {split: tuple(each.name for each in listed if each.split == split) for split in SPLITS} == MINI_IMAGENET
    assert message in caplog.text


def test_a_part_of_the_classes_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = published(lambda name, split: split)
    module(write_folder(tmp_path / "root", {**files, **tree()})).list_classes()
    assert "100 of the 109 classes here are among the 100 published ones, 0 of them in another split" in caplog.text


def edited(name: str, change: Callable[[bytes], bytes]) -> Files:
    files = table()
    return {**files, name: change(files[name])}


FAULTS: dict[str, tuple[Files, str]] = {
    "missing file": (
        edited("val.csv", lambda text: text + b"n9.png,n1\n"),
        "line 14 of .*val.csv names n9.png, which is not",
    ),
    "traversal": (
        edited("val.csv", lambda text: text + b"../val.csv,n1\n"),
        "names ../val.csv, which is not among the images",
    ),
    "duplicate": (
        edited("val.csv", lambda text: text + b"n1_0.png,n1\n"),
        "line 14 of .*names n1_0.png, as line 2 of .*val.csv",
    ),
    "duplicate elsewhere": (
        edited("test.csv", lambda text: text + b"n1_0.png,n2\n"),
        "names n1_0.png, as line 2 of .*val.csv",
    ),
    "two splits": (
        edited("test.csv", lambda text: text.replace(b"n2_0.png,n2", b"n2_0.png,n1")),
        "class n1 is in val.csv and, in line 2 of .*test.csv, in test.csv too",
    ),
    "no label": (
        edited("val.csv", lambda text: text + b"n4_9.png,\n"),
        "line 14 of .* the label '', but a row needs both",
    ),
    "no comma": (
        edited("val.csv", lambda text: text + b"n4_9.png\n"),
        "line 14 of .* the label None, but a row needs both",
    ),
    "no file name": (
        edited("val.csv", lambda text: text + b",n4\n"),
        "line 14 of .* the filename '' .*but a row needs both",
    ),
    "other columns": (
        edited("val.csv", lambda text: text.replace(b"filename,label", b"image;class")),
        "val.csv has the columns 'image;class', but it must have filename,label",
    ),
    "no header": (edited("val.csv", lambda text: text.partition(b"\n")[2]), "val.csv has the columns 'n1_0.png,n1'"),
    "header alone": (edited("val.csv", lambda text: b"filename,label\n"), "val.csv lists no image; restore it"),
    "empty table": (edited("val.csv", lambda text: b""), "val.csv lists no image; restore it"),
    "latin-1": (edited("val.csv", lambda text: text + b"n1_0.png,\xe9\n"), "val.csv is not UTF-8 .*; save it as UTF-8"),
    "utf-16": (edited("val.csv", lambda text: text.decode().encode("utf-16")), "val.csv is not UTF-8"),
    "open quote": (
        edited("val.csv", lambda text: text + b'"' + b"a" * 200_000),
        "val.csv cannot be read .field larger than",
    ),
    "truncated image": (edited("images/n0_1.png", lambda data: data[:100]), r"image .*images/n0_1.png cannot be read"),
    "empty image": (edited("images/n0_1.png", lambda data: b""), r"image .*images/n0_1.png cannot be read"),
}


@pytest.mark.parametrize("write", [write_folder, write_zip, write_tar])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_a_table_is_one_line(fault: str, write: Callable[[Path, Files], Path], tmp_path: Path) -> None:
    files, message = FAULTS[fault]
    with pytest.raises(DataError, match=message) as caught:
        module(write(tmp_path / "root", files)).prepare_data()
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("cache/*.store"))


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace(b"\n", b"\r\n"),
        lambda text: b"\xef\xbb\xbf" + text,
        lambda text: b"\xef\xbb\xbf" + text.replace(b"\n", b"\r\n").rstrip(),
        lambda text: text + b"\n\n",
        lambda text: b"".join(line + b",1\n" for line in text.replace(b"label", b"label,more").splitlines()),
        lambda text: text.replace(b"n", b"n").replace(b"filename,label", b'"filename","label"'),
    ],
    ids=["windows", "bom", "both", "empty lines", "more columns", "quotes"],
)
def test_tables_of_other_programs_are_read(
    change: Callable[[bytes], bytes], expected: torch.Tensor, tmp_path: Path
) -> None:
    files = table()
    changed = {name: change(data) if name.endswith(".csv") else data for name, data in files.items()}
    if b",1\n" in changed["val.csv"]:
        changed = {name: data.replace(b"more,1", b"more") for name, data in changed.items()}
    assert torch.equal(episodes(module(write_folder(tmp_path / "root", changed))), expected)


def test_a_truncated_jpeg_among_many_is_named(tmp_path: Path) -> None:
    files = {name.replace(".png", ".jpg"): png(pixels_of(0, 0), "jpeg") for name in tree()}
    files["val/n4/2.jpg"] = files["val/n4/2.jpg"][:-200]
    for write in (write_folder, write_zip, write_tar):
        with pytest.raises(DataError, match=r"image .*val/n4/2.jpg cannot be read .*truncated"):
            module(write(tmp_path / write.__name__, files)).prepare_data()


@pytest.mark.parametrize("write", [write_folder, write_zip, write_tar])
def test_a_class_without_images_is_named(write: Callable[[Path, Files], Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"class folder .*val/n100 holds no image; add some"):
        module(write(tmp_path / "root", {**tree(), "val/n100/readme.txt": b""})).prepare_data()


def test_a_class_in_two_folders_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"class n0 is in train and again in test of .*; remove one"):
        module(write_folder(tmp_path / "root", {**tree(), "test/n0/0.png": png(pixels_of(0, 0))})).prepare_data()


def test_what_is_there_without_being_miniimagenet_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"root .*nowhere does not exist; set data.root"):
        module(tmp_path / "nowhere").prepare_data()
    (tmp_path / "root" / "train").mkdir(parents=True)
    with pytest.raises(
        DataError, match=r"holds no miniImageNet: it must hold images/ with train.csv.*licence"
    ) as caught:
        module(tmp_path / "root").prepare_data()
    assert "\n" not in str(caught.value)
    (tmp_path / "root" / "all.zip").write_bytes(b"no zip")
    with pytest.raises(DataError, match=r"archive .*all.zip cannot be read .*fetch it again"):
        module(tmp_path / "root").prepare_data()


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch evil",)


@pytest.mark.parametrize("write", [write_folder, write_zip, write_tar])
def test_a_cache_that_would_run_code_does_not(
    write: Callable[[Path, Files], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    files = cache()
    content = pickle.loads(files["mini-imagenet-cache-val.pkl"])
    files["mini-imagenet-cache-val.pkl"] = pickle.dumps({**content, "more": Evil()})
    with pytest.raises(DataError, match=r"mini-imagenet-cache-val.pkl asks for '.*system'.* nothing is run"):
        module(write(tmp_path / "root", files)).prepare_data()
    assert not (tmp_path / "evil").exists()


ARRAY = np.zeros((4, 12, 12, 3), np.uint8)
LONG, TWO = np.zeros((8, 12, 12, 3)), {"a": [0, 1, 2, 3], "b": [4, 5, 6, 7]}
CACHES: dict[str, tuple[Any, str]] = {
    "list": ([1], "holds a list, but it must hold a dict of image_data and class_dict"),
    "no images": ({"class_dict": {}}, "images in .* are NoneType"),
    "no classes": ({"image_data": ARRAY}, "neither class_dict nor labels"),
    "flat": ({"image_data": ARRAY.reshape(4, -1), "class_dict": {}}, r"images in .* are uint8 \[4, 432\]"),
    "grey": ({"image_data": ARRAY[..., 0], "class_dict": {}}, r"images in .* are uint8 \[4, 12, 12\]"),
    "two channels": ({"image_data": ARRAY[..., :2], "class_dict": {}}, r"the shape \[4, 12, 12, 2\], but it must be"),
    "empty class": ({"image_data": ARRAY, "class_dict": {"a": []}}, "class a in .* lists no images"),
    "class of what": ({"image_data": ARRAY, "class_dict": {"a": "0"}}, "class a in .* lists no images"),
    "too far": ({"image_data": ARRAY, "class_dict": {"a": [1, 4]}}, "images from 1 to 4, but there are 4"),
    "negative": ({"image_data": ARRAY, "class_dict": {"a": [-1]}}, "images from -1 to -1"),
    "twice": (
        {"image_data": ARRAY, "class_dict": {"a": [1], "b": [1]}},
        "class b in .* lists an image that is listed already",
    ),
    "labels": (
        {"data": ARRAY, "labels": [0, 1]},
        r"labels in .* are int64 \[2\], but there must be .* each of 4 images",
    ),
    "names": ({"data": ARRAY, "labels": list("abcd")}, r"labels in .* are <U1"),
    "normalised": ({"image_data": LONG - 0.5, "class_dict": TWO}, "values from -0.5"),
    "nan": ({"image_data": LONG * np.nan, "class_dict": TWO}, "values from nan"),
    "unit": ({"image_data": LONG + 0.5, "class_dict": TWO}, "have values in 0..1, but white is 255"),
}


@pytest.mark.parametrize("kind", CACHES)
def test_a_cache_of_other_contents_is_one_line(kind: str, tmp_path: Path) -> None:
    content, message = CACHES[kind]
    files = cache()
    files["mini-imagenet-cache-train.pkl"] = pickle.dumps(content)
    with pytest.raises(DataError, match=message) as caught:
        module(write_folder(tmp_path / "root", files)).prepare_data()
    assert "\n" not in str(caught.value)
    assert "mini-imagenet-cache-train.pkl" in str(caught.value)


def test_labels_without_names_are_classes_of_their_split(tmp_path: Path) -> None:
    files = {}
    for split in SPLITS:
        content = {"data": np.repeat(ARRAY, 9, 0), "labels": np.arange(36) % 12}
        files[f"{split}.pkl"] = pickle.dumps(content)
    data = module(write_folder(tmp_path / "root", files))
    assert data.class_names("val") == [f"val/{label}" for label in range(12)]


def test_too_much_is_asked_before_anything_is_packed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ways is 4, but the train split of MiniImageNetDataModule has 3 classes"):
        module(write_folder(tmp_path / "root", cache()), ways=4).prepare_data()
    assert not (tmp_path / "cache").exists()
