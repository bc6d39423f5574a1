"""Files that are no checkpoints, or claim to be more than they are: one line at once, whatever they hold."""

from __future__ import annotations

import contextlib
import os
import pickle
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from metalearn import CheckpointError
from metalearn.carried import read_checkpoint

PLAIN: dict[str, Any] = {
    "state_dict": {"w": torch.arange(4.0)}, "pytorch-lightning_version": "2.6.0", "epoch": 0, "global_step": 1,
}  # fmt: skip


@pytest.fixture
def good(tmp_path: Path) -> Path:
    torch.save(PLAIN, tmp_path / "good.ckpt")
    return tmp_path / "good.ckpt"


def repack(source: Path, change: Callable[[str, bytes], bytes], method: int = zipfile.ZIP_STORED) -> Path:
    target = source.with_name("packed.ckpt")
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", method) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return target


def test_plain_types_are_read_as_they_were_saved(good: Path) -> None:
    found = read_checkpoint(good)
    assert found.keys() == PLAIN.keys()
    assert torch.equal(found["state_dict"]["w"], torch.arange(4.0))
    good.write_bytes(b"")  # what was read does not depend on the file any more
    assert torch.equal(found["state_dict"]["w"], torch.arange(4.0))


def test_paths_that_are_no_files_are_one_line(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    cases = {
        "": "path is empty", str(tmp_path / "nope"): "does not exist", str(tmp_path / "folder"): "is a folder",
        "s3://x/y.ckpt": "remote",
        "https://x/y.ckpt": "remote", str(tmp_path / "pipe"): "no regular file", "/dev/zero": "no regular file",
        "a\0b": "cannot be opened", "x" * 5000: "cannot be opened",
    }  # fmt: skip
    for path, reason in cases.items():
        with pytest.raises(CheckpointError, match=reason) as caught:
            read_checkpoint(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("length", [0, 1, 21, 97, 98, 99, 200, -1, -22, -98, -500])
def test_truncated_files(length: int, good: Path) -> None:
    good.write_bytes(good.read_bytes()[:length])
    with pytest.raises(CheckpointError, match="cannot be read as plain tensors"):
        read_checkpoint(good)


@pytest.mark.parametrize("where", ["before", "after"])
def test_an_archive_with_something_around_it(where: str, good: Path) -> None:
    """Readers of archives differ in what they make of it."""
    content = good.read_bytes()
    good.write_bytes(b"x" * 64 + content if where == "before" else content + b"x" * 64)
    with pytest.raises(CheckpointError, match="cannot be read as plain tensors"):
        read_checkpoint(good)


@pytest.mark.parametrize("at", range(0, 1600, 40))
def test_a_changed_byte_is_read_or_told(at: int, good: Path) -> None:
    content = bytearray(good.read_bytes())
    content[at % len(content)] ^= 0xFF
    good.write_bytes(content)
    with contextlib.suppress(CheckpointError):  # nothing else is raised
        read_checkpoint(good)


def test_other_files(tmp_path: Path) -> None:
    path = tmp_path / "other.ckpt"
    contents: list[Callable[[], object]] = [
        lambda: path.write_text("weights"), lambda: path.write_bytes(pickle.dumps(PLAIN["epoch"])),
        lambda: torch.save(PLAIN, path, _use_new_zipfile_serialization=False),
        lambda: zipfile.ZipFile(path, "w").writestr("a.txt", "a"),
        lambda: os.truncate(path, 1 << 40),
    ]  # fmt: skip
    for make in contents:
        path.write_bytes(b"")
        make()
        start = time.perf_counter()
        with pytest.raises(CheckpointError, match="cannot be read as plain tensors"):
            read_checkpoint(path)
        assert time.perf_counter() - start < 60  # not a terabyte


def test_compressed_entries_are_refused_unread(good: Path) -> None:
    """1 GiB of zeros in 1 MB."""
    bomb = repack(good, lambda name, data: bytes(1 << 26) if "/data/" in name else data, zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="compressed"):
        read_checkpoint(bomb)


def test_tensors_that_claim_more_than_there_is(good: Path) -> None:
    """The storage is said to have 2 billion elements, 16 bytes are there."""

    def claim(name: str, data: bytes) -> bytes:
        many = b"J" + (2_000_000_000).to_bytes(4, "little")
        return (
            data.replace(b"K\x04tq", many + b"tq").replace(b"K\x04\x85q", many + b"\x85q")
            if name.endswith("pkl")
            else data
        )

    changed = repack(good, claim)
    assert changed.read_bytes() != good.read_bytes()
    with pytest.raises(CheckpointError, match="cannot be read as plain tensors"):
        read_checkpoint(changed)


def test_expanded_and_odd_tensors(tmp_path: Path) -> None:
    path = tmp_path / "odd.ckpt"
    odd = {
        "more than the file holds": torch.zeros(1).expand(1 << 40),
        "cannot be read as plain tensors": torch.eye(3).to_sparse(),
        "a tensor of the kind Tensor": torch.empty(3, device="meta"),
    }
    for reason, tensor in odd.items():
        torch.save({**PLAIN, "state_dict": {"w": tensor}}, path)
        with pytest.raises(CheckpointError, match=reason):
            read_checkpoint(path)


def test_contents_without_end(tmp_path: Path) -> None:
    path = tmp_path / "nested.ckpt"
    inside: list[Any] = [1]
    for _ in range(40):  # 2^40 leaves, of which the file holds 40
        inside = [inside, inside]
    loop: list[Any] = []
    loop.append(loop)
    for value in (inside, loop):
        torch.save({**PLAIN, "more": value}, path)
        with pytest.raises(CheckpointError, match="nested without end"):
            read_checkpoint(path)


WRONG: dict[str, tuple[Any, ...]] = {
    "state_dict": (None, [], 3, {1: torch.zeros(1)}, {"w": 1.0}, {"w": None}),
    "pytorch-lightning_version": (None, 2, "", "new", "99.0.0", "1.9.5", "2" * 200, ["2.6.0"]),
    "epoch": (None, "1", -1, True, 10**30, 1.0), "global_step": ("x", -1, 10**30), "hyper_parameters": (3, [1]),
    "loops": (3, {"fit_loop": 3}, {1: {}}), "callbacks": ("x", {"a": 1}), "optimizer_states": ({}, [None]),
    "lr_schedulers": (1, [1]),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_sections_of_wrong_types(name: str, tmp_path: Path) -> None:
    for value in WRONG[name]:
        torch.save({**PLAIN, name: value}, tmp_path / "wrong.ckpt")
        with pytest.raises(CheckpointError) as caught:
            read_checkpoint(tmp_path / "wrong.ckpt")
        assert "\n" not in str(caught.value), value
    for missing in ("state_dict", "pytorch-lightning_version"):
        torch.save({key: value for key, value in PLAIN.items() if key != missing}, tmp_path / "wrong.ckpt")
        with pytest.raises(CheckpointError, match=missing):
            read_checkpoint(tmp_path / "wrong.ckpt")
