"""The packed store and the files it is made from, when things go wrong."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metalearn import DataError
from metalearn.datamodules.store.header import ALIGNMENT, MAGIC, VERSION, fingerprint
from metalearn.datamodules.store.opening import open_or_pack
from metalearn.datamodules.store.packer import Packer

IMAGES = np.arange(2 * 3 * 4 * 4, dtype=np.uint8).reshape(2, 3, 1, 4, 4)


def pack(packer: Packer) -> dict[str, Any]:
    for name, images in zip("ab", IMAGES, strict=True):
        packer.add(name, images)
    return {"kept": 1}


def opened(folder: Path, source: str = "s", **more: Any) -> Any:
    return open_or_pack("tiny", source, (1, 4, 4), pack, str(folder), **more)


def test_round_trip(tmp_path: Path) -> None:
    store = opened(tmp_path, verify=True)
    assert (store.images == IMAGES.reshape(6, 1, 4, 4)).all()
    assert store.names == ["a", "b"]
    assert store.offsets.tolist() == [0, 3]
    assert store.meta == {"kept": 1}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.lock", "tiny.store"]


def test_names_of_images_and_statistics_of_classes(tmp_path: Path) -> None:
    """numpy's own mean and standard deviation; names are read from behind the images."""
    names = [["x", "y", "z"], ["u", "v", "w"]]
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 3, 2, 4, 4), dtype=np.uint8)
    images[0, :, 1] = 1  # a constant channel, whose deviation is 1 by convention

    def named(packer: Packer) -> None:
        for number, given in enumerate(names):
            packer.add("ab"[number], images[number], "pq"[number], given)

    store = open_or_pack("named", "s", (2, 4, 4), named, str(tmp_path), verify=True)
    assert store.groups == ["p", "q"]
    assert store.meta == {}
    assert [store.image_names(number) for number in (0, 1, 0)] == [names[0], names[1], names[0]]
    for classes in ([0], [1], [0, 1]):
        means, spreads = store.statistics(np.array(classes))
        pixels = images[classes].swapaxes(0, 2).reshape(2, -1) / 255
        assert means == pytest.approx(pixels.mean(1).tolist(), rel=1e-12)
        expected = [spread if spread > 1e-12 else 1.0 for spread in pixels.std(1).tolist()]
        assert spreads == pytest.approx(expected, rel=1e-9)
    assert opened(tmp_path).image_names(0) is None


def test_a_fingerprint_is_the_same_in_every_release() -> None:
    """Otherwise every store would be packed again."""
    assert fingerprint(["a", 1]) == hashlib.sha256(b'["a", "1"]').hexdigest()[:16]


@pytest.mark.parametrize(
    ("images", "names", "said"),
    [
        (IMAGES[0].astype(np.float32), (), "images are float32"),
        (IMAGES[0][..., :3], (), "the store holds uint8"),
        (IMAGES[0], ("x", "y"), "2 names for 3 images"),
    ],
)
def test_what_a_packer_adds_must_fit_its_store(
    images: np.ndarray, names: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=said):
        open_or_pack("wrong", "s", (1, 4, 4), lambda packer: packer.add("a", images, "", names), str(tmp_path))
    assert not (tmp_path / "wrong.store").exists()


def damage_cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def damage_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:30])


def damage_stub(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: len(MAGIC) + 2])


def damage_foreign(path: Path) -> None:
    path.write_bytes(b"something else altogether")


def damage_version(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[8:12] = struct.pack("<I", 99)
    path.write_bytes(data)


def damage_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def rewritten(change: Callable[[Any], Any], name: str) -> Any:
    """Damage that leaves a header of valid JSON, in a file of the right size."""

    def damage(path: Path) -> None:
        data = path.read_bytes()
        start = len(MAGIC) + 8
        (length,) = struct.unpack("<I", data[start - 4 : start])
        text = json.dumps(change(json.loads(data[start : start + length]))).encode()
        head = MAGIC + struct.pack("<II", VERSION, len(text)) + text
        path.write_bytes(head + b"\0" * (-len(head) % ALIGNMENT) + data[-IMAGES.size :])

    return pytest.param(damage, id=name)


HEADERS = [
    rewritten(lambda header: {}, "empty"),
    rewritten(lambda header: [], "list"),
    rewritten(lambda header: None, "null"),
    *(
        rewritten(lambda header, field=field: {**header, field: {"wrong": 1}}, f"{field}-wrong")
        for field in ("shape", "names", "counts", "sha256", "source", "digest")
    ),
    rewritten(lambda header: {name: value for name, value in header.items() if name != "meta"}, "no-meta"),
    rewritten(lambda header: {**header, "meta": {}}, "other-meta"),
    rewritten(lambda header: {**header, "shape": [2, 3, 1, 16]}, "other-shape"),
    rewritten(lambda header: {**header, "shape": [-6, -1, 4, 4]}, "negative-shape"),
    rewritten(lambda header: {**header, "counts": [4, 2]}, "other-counts"),
    rewritten(lambda header: {**header, "names": ["a"]}, "a-name-less"),
]


@pytest.mark.parametrize(
    "damage", [damage_cut, damage_header, damage_stub, damage_foreign, damage_version, damage_bit, *HEADERS]
)
def test_a_damaged_store_is_packed_again(damage: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    opened(tmp_path)
    damage(tmp_path / "tiny.store")
    with caplog.at_level(logging.WARNING):
        assert (opened(tmp_path, verify=True).images == IMAGES.reshape(6, 1, 4, 4)).all()
    assert "packing it again" in caplog.text
    caplog.clear()
    opened(tmp_path, verify=True)
    assert not caplog.text


def test_another_source_is_packed_again(tmp_path: Path) -> None:
    opened(tmp_path)
    assert opened(tmp_path, source="other").source == "other"


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    def full(packer: Packer) -> None:
        packer.add("a", IMAGES[0])
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(DataError, match="cannot be written .No space left on device.; free space"):
        open_or_pack("tiny", "s", (1, 4, 4), full, str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.lock"]


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    """A file system of 256 KiB, where one may be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no file system may be mounted here ({mounted.stderr.strip()})")
    try:
        with pytest.raises(DataError, match="cannot be written .No space left on device.; free space"):
            open_or_pack(
                "big", "s", (1, 64, 64), lambda packer: packer.add("a", np.zeros((200, 1, 64, 64), np.uint8)), str(disk)
            )
        assert [path.name for path in disk.iterdir()] == ["big.lock"]
        assert (opened(disk).images == IMAGES.reshape(6, 1, 4, 4)).all()  # what fits still does
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="METALEARN_CACHE"):
        opened(tmp_path / "file" / "below")


SLOW = """
import sys, time
import numpy as np
from metalearn.datamodules.store.opening import open_or_pack
def pack(packer):
    for name in "ab":
        packer.add(name, np.full((3, 1, 4, 4), 7, np.uint8))
        print("added", flush=True)
        time.sleep(float(sys.argv[2]))
open_or_pack("tiny", "s", (1, 4, 4), pack, sys.argv[1])
"""


def start(folder: Path, pause: float) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", SLOW, str(folder), str(pause)], stdout=subprocess.PIPE, text=True)


def test_a_packer_killed_half_way_leaves_no_store(tmp_path: Path) -> None:
    child = start(tmp_path, 60)
    assert child.stdout is not None
    child.stdout.readline()
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert not (tmp_path / "tiny.store").exists()
    opened(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.lock", "tiny.store"]


def test_two_packers_at_once_pack_once(tmp_path: Path) -> None:
    children = [start(tmp_path, 0.5) for _ in range(2)]
    printed = [child.communicate()[0] for child in children]
    assert [child.returncode for child in children] == [0, 0]
    assert sorted(text.count("added") for text in printed) == [0, 2]


def test_waiting_for_another_packer_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    child = start(tmp_path, 0.5)
    assert child.stdout is not None
    child.stdout.readline()
    assert (opened(tmp_path).images == 7).all()
    assert [record.getMessage() for record in caplog.records] == [
        f"store {tmp_path / 'tiny.store'}: another process is packing it; waiting until it is done"
    ]
    assert child.wait() == 0
    child.stdout.close()
