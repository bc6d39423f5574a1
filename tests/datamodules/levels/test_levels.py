"""MNIST with wrong labels and 20 Newsgroups: what is read, what is refused, what is fixed, what resumes."""

from __future__ import annotations

import gzip
import lzma
import struct
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metalearn.datamodules import LevelBatch, MNISTCleaningDataModule, NewsgroupsDataModule, TermBatches
from metalearn.datamodules.mnist_cleaning import corrupt
from metalearn.errors import ConfigError, DataError
from tests.made_bilevel import GROUPS, add, make_mnist, make_newsgroups, make_posts, write_idx

SIZES = {"train": 100, "val": 50, "test": 50}


def mnist(root: Path, **changes: Any) -> MNISTCleaningDataModule:
    return MNISTCleaningDataModule(str(root), **{**SIZES, **changes})


def test_the_labels_are_corrupted_once_and_uniformly(tmp_path: Path) -> None:
    data, clean = mnist(make_mnist(tmp_path)), mnist(tmp_path, corruption=0.0)
    for _ in range(3):
        train = data.part("train")
    assert int(data.corrupted.sum()) == 40
    assert torch.equal(data.corrupted, train.y != clean.part("train").y)
    assert torch.equal(train.x, clean.part("train").x)
    assert torch.equal(data.part("val").y, clean.part("val").y)
    assert 0 <= float(train.x.min()) < float(train.x.max()) <= 1
    labels, mask = corrupt(torch.zeros(9000, dtype=torch.int64), 0.5, 10, 0)
    counts = torch.bincount(labels[mask], minlength=10)
    assert counts[0] == 0
    assert int(counts[1:].min()) > 400


def test_split_and_mask_do_not_depend_on_the_seed_of_the_run(tmp_path: Path) -> None:
    one, other = mnist(make_mnist(tmp_path), seed=0, batch_size=8), mnist(tmp_path, seed=1, batch_size=8)
    for name in ("train", "val", "test"):
        assert all(torch.equal(a, b) for a, b in zip(one.part(name), other.part(name), strict=True))
    assert torch.equal(one.corrupted, other.corrupted)
    assert not torch.equal(one.batch(0).inner.index, other.batch(0).inner.index)
    assert not torch.equal(one.corrupted, mnist_mask(tmp_path, 1))


def mnist_mask(root: Path, seed: int) -> torch.Tensor:
    data = mnist(root, mask_seed=seed)
    data.setup()
    return data.corrupted


def test_parts_share_no_image(tmp_path: Path) -> None:
    data = mnist(make_mnist(tmp_path))
    rows = torch.cat([data.part(name).x for name in ("train", "val", "test")])
    assert len(torch.unique(rows, dim=0)) == 200


def test_with_both_files_the_test_examples_are_the_official_ones(tmp_path: Path) -> None:
    make_mnist(tmp_path, part="train", pack=False)
    data = mnist(make_mnist(tmp_path, count=60), test=60)
    alone = mnist(make_mnist(tmp_path / "alone", count=60), train=20, val=20, test=20)
    assert len(data.part("test").y) == 60
    pool = {row.numpy().tobytes() for row in data.part("test").x}
    assert {row.numpy().tobytes() for row in alone.part("train").x} <= pool


def test_each_term_has_independent_batches(tmp_path: Path) -> None:
    data = mnist(make_mnist(tmp_path), batch_size=8, draws={"inner": 3, "hessian": 2})
    batch = data.batch(5)
    assert isinstance(batch, TermBatches)
    assert [list(part.index.shape) for part in batch] == [[3, 8], [1, 8], [2, 8], [1, 8]]
    train = data.part("train")
    for part in (batch.inner, batch.hessian, batch.jacobian):
        assert torch.equal(part.x, train.x[part.index])
        assert torch.equal(part.y, train.y[part.index])
    assert torch.equal(batch.outer.y, data.part("val").y[batch.outer.index])
    drawn = [tuple(row.tolist()) for part in (batch.inner, batch.hessian, batch.jacobian) for row in part.index]
    assert len(set(drawn)) == 6
    assert isinstance(mnist(tmp_path).batch(0), LevelBatch)


def test_a_loader_resumes_with_the_next_batch(tmp_path: Path) -> None:
    def data() -> MNISTCleaningDataModule:
        return mnist(tmp_path, batch_size=4, steps_per_epoch=5)

    make_mnist(tmp_path)
    loader = data().train_dataloader()
    whole = [batch.inner.index for batch in loader] + [batch.inner.index for batch in loader]
    assert len({tuple(index.flatten().tolist()) for index in whole}) == 10
    first, resumed = data().train_dataloader(), data().train_dataloader()
    iterator = iter(first)
    for _ in range(2):
        next(iterator)
    resumed.load_state_dict(first.state_dict())
    assert all(torch.equal(batch.inner.index, index) for batch, index in zip(resumed, whole[2:5], strict=True))
    chunks = list(mnist(tmp_path, eval_batch_size=20).test_dataloader())
    assert [len(chunk.y) for chunk in chunks] == [20, 20, 10]


@pytest.mark.parametrize("pack", [True, False])
def test_damaged_idx_files_are_refused_in_one_line(tmp_path: Path, pack: bool) -> None:
    images, labels = (f"t10k-{name}-ubyte" + (".gz" if pack else "") for name in ("images-idx3", "labels-idx1"))

    def refused(pattern: str) -> None:
        with pytest.raises(DataError, match=pattern) as caught:
            mnist(tmp_path).setup()
        assert "\n" not in str(caught.value)

    refused("has no MNIST files")
    make_mnist(tmp_path, pack=pack)
    whole = (tmp_path / images).read_bytes()
    plain = gzip.decompress(whole) if pack else whole

    def put(data: bytes) -> None:
        (tmp_path / images).write_bytes(gzip.compress(data) if pack else data)

    (tmp_path / images).write_bytes(whole[: len(whole) // 2])
    refused("truncated")
    put(b"hello" + plain)
    refused("begins with 68656c6c")
    put(plain[:3] + b"\1" + plain[4:])
    refused("with 3 axes")
    put(plain[:10])
    refused("ends within its header")
    put(plain + b"\0")
    refused("has more of the")
    put(plain[:4] + struct.pack(">3I", 1 << 31, 1 << 31, 1 << 31) + plain[16:])
    refused("claims the shape")
    put(plain[:4] + struct.pack(">3I", 100, 8, 8) + plain[16 : 16 + 6400])
    refused("100 images")
    (tmp_path / images).unlink()
    refused("has no t10k-images")
    make_mnist(tmp_path, pack=pack)
    write_idx(tmp_path / labels, np.full(200, 11, np.uint8), pack)
    refused("label 11")
    make_mnist(tmp_path, count=150, pack=pack)
    refused("150 images of t10k, but train, val and test need 200")


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"corruption": 1.0}, "corruption is 1.0"),
        ({"train": 0}, "train is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"draws": {"outter": 1}}, "draws has 'outter'"),
        ({"draws": {"outer": 0}}, "at least 1"),
    ],
)
def test_arguments_of_mnist(tmp_path: Path, changes: dict[str, object], pattern: str) -> None:
    with pytest.raises(ConfigError, match=pattern):
        mnist(tmp_path, **changes)


@pytest.mark.parametrize("mode", ["w:xz", "w:gz", "w"])
def test_newsgroups_from_an_archive_and_from_folders_are_the_same(tmp_path: Path, mode: str) -> None:
    packed = NewsgroupsDataModule(str(make_newsgroups(tmp_path / "packed", mode=mode)))
    loose = NewsgroupsDataModule(str(make_newsgroups(tmp_path / "loose", packed=False)))
    direct = NewsgroupsDataModule(str(tmp_path / "packed" / "20news-bydate.tar.xz"))
    for name, count in (("train", 18), ("val", 18), ("test", 36)):
        part = packed.part(name)
        assert part.x.shape[0] == len(part.y) == count
        for other in (loose, direct):
            assert torch.equal(part.x.to_dense(), other.part(name).x.to_dense())
            assert torch.equal(part.y, other.part(name).y)
    assert packed.classes == list(GROUPS)
    assert len(packed.words) == packed.part("test").x.shape[1] == 58
    lengths = packed.part("train").x.to_dense().norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones(18))


def test_the_split_of_newsgroups_is_a_constant(tmp_path: Path) -> None:
    make_newsgroups(tmp_path)
    one, same = (NewsgroupsDataModule(str(tmp_path), seed=seed) for seed in (0, 1))
    other = NewsgroupsDataModule(str(tmp_path), split_seed=1, vocabulary=10)
    assert torch.equal(one.part("train").x.to_dense(), same.part("train").x.to_dense())
    assert not torch.equal(one.part("train").y, other.part("train").y)
    assert other.part("train").x.shape == (18, 10)
    again = other.part("train").y
    other.cut_again(0)
    assert torch.equal(other.part("train").y, one.part("train").y)
    other.cut_again(1)
    assert torch.equal(other.part("train").y, again)
    (batch,) = NewsgroupsDataModule(str(tmp_path), steps_per_epoch=1).train_dataloader()
    assert batch.inner.x.shape == (18, 58)
    (test,) = one.test_dataloader()
    assert len(test.y) == 36


def test_a_cut_by_date_validates_by_the_later_posts_and_holds_out_the_latest(tmp_path: Path) -> None:
    # the text says when it was written: with as many words as posts, each post is its own feature
    for part, count in (("train", 8), ("test", 2)):
        for group in ("a", "b"):
            folder = tmp_path / f"20news-bydate-{part}" / group
            folder.mkdir(parents=True)
            for number in range(count):
                (folder / f"{96 + number}-o").write_text(f"{part}{group}{number:02}")  # 99 is before 100

    def told(**changes: Any) -> dict[str, set[str]]:
        data = NewsgroupsDataModule(str(tmp_path), **changes)
        data.setup()
        return {
            name: {data.words[column] for column in part.x.to_dense().nonzero()[:, 1]}
            for name, part in data.parts.items()
            if name != "test"
        }

    def posts(*numbers: int) -> set[str]:
        return {f"train{group}{number:02}" for group in "ab" for number in numbers}

    whole = {"train": posts(0, 1, 2, 3), "val": posts(4, 5, 6), "held": posts(7)}
    assert told(cut="date", held_share=0.25) == whole
    assert told(cut="date", held_share=0.25, split_seed=3) == whole
    used = [told(cut="date", used_share=0.75, split_seed=seed) for seed in (0, 1)]
    assert used[0] != used[1]
    for parts in used:
        assert [len(part) for part in parts.values()] == [6, 6]
        for group in "ab":
            assert max(post for post in parts["train"] if group in post[5:]) < min(
                post for post in parts["val"] if group in post[5:]
            )
    mixed = told(held_share=0.25)
    assert set.union(*mixed.values()) == posts(*range(8))
    assert [len(part) for part in mixed.values()] == [8, 6, 2]

    data = NewsgroupsDataModule(str(tmp_path), cut="date", held_share=0.25)
    (held,) = data.val_dataloader()
    assert len(held.y) == 2
    batch = data.batch(0)
    assert isinstance(batch, LevelBatch)
    assert len(batch.outer.y) == 6
    (tmp_path / "20news-bydate-train" / "a" / "readme").write_text("words")
    told()
    with pytest.raises(DataError, match="has the post 'readme', but cut='date' goes by the number"):
        told(cut="date")


@pytest.mark.parametrize(
    ("name", "fields", "pattern"),
    [
        ("../../etc/passwd", {}, "leads out of the archive"),
        ("/20news-bydate-train/a/1", {}, "no relative path"),
        ("20news-bydate-train/a/1", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, "is a link"),
        ("20news-bydate-train/a/1", {"type": tarfile.LNKTYPE, "linkname": "x"}, "is a link"),
        ("20news-bydate-train/a/1", {"size": 1 << 40}, "more than any post"),
        ("20news-bydate-train/a\n/1", {}, "cannot be printed"),
    ],
)
def test_an_unsafe_archive_is_not_read(tmp_path: Path, name: str, fields: dict[str, Any], pattern: str) -> None:
    with tarfile.open(tmp_path / "20news-bydate.tar.xz", "w:xz") as archive:
        add(archive, name, **fields)
    with pytest.raises(DataError, match=pattern) as caught:
        NewsgroupsDataModule(str(tmp_path)).setup()
    assert "\n" not in str(caught.value)


def test_newsgroups_that_cannot_be_read(tmp_path: Path) -> None:
    def refused(pattern: str) -> None:
        with pytest.raises(DataError, match=pattern) as caught:
            NewsgroupsDataModule(str(tmp_path)).setup()
        assert "\n" not in str(caught.value)

    refused("has neither 20news-bydate.tar.xz nor")
    path = tmp_path / "20news-bydate.tar.xz"
    path.write_bytes(b"no archive")
    refused("no tar file")
    make_newsgroups(tmp_path)
    path.write_bytes(path.read_bytes()[:400])
    refused("truncated")
    path.write_bytes(
        lzma.compress(lzma.decompress(make_newsgroups(tmp_path / "x").joinpath(path.name).read_bytes())[:5000])
    )
    refused("truncated|no posts")
    with tarfile.open(path, "w:xz") as archive:
        for name, data in make_posts().items():
            add(archive, name.replace("test/sci.space", "test/sci.med"), data)
    refused("group sci.med in its test part alone")


def test_arguments_of_newsgroups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for changes, pattern in (
        ({"vocabulary": 0}, "vocabulary is 0"),
        ({"val_share": 1.0}, "val_share is 1.0"),
        ({"held_share": 1.0}, "held_share is 1.0"),
        ({"used_share": 0.0}, "used_share is 0.0"),
        ({"cut": "name"}, "cut is 'name', but it must be one of random, date"),
    ):
        with pytest.raises(ConfigError, match=pattern):
            NewsgroupsDataModule(str(tmp_path), **changes)
    for changes, empty in (({"val_share": 0.01}, "val"), ({"held_share": 0.01}, "held")):
        with pytest.raises(DataError, match=f"has 36 training posts to use, .* leave {empty} empty"):
            NewsgroupsDataModule(str(make_newsgroups(tmp_path / empty)), **changes).setup()
    monkeypatch.setitem(sys.modules, "sklearn.feature_extraction.text", None)
    with pytest.raises(ConfigError, match="scikit-learn.*pip install"):
        NewsgroupsDataModule(str(make_newsgroups(tmp_path))).setup()
