"""Archives are read in place; what is not to be trusted in them is named before anything is read."""

from __future__ import annotations

import io
import stat
import struct
import tarfile
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from metalearn import DataError
from metalearn.datamodules.sources import members, zip_reader
from metalearn.datamodules.sources.archives import list_archive
from metalearn.datamodules.sources.members import map_file
from metalearn.datamodules.sources.places import look_in

FILES = {"a/1.png": b"one" * 1000, "a/2.png": b"two", "b/c/3.png": b"", "top.csv": b"x,y\n"}


def write_zip(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        for name, data in files.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = method
            file.writestr(info, data)
    return path


def write_tar(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as file:  # type: ignore[call-overload]
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


WRITERS: dict[str, Callable[[Path, dict[str, bytes]], Path]] = {
    "zip": write_zip,
    "stored": lambda path, files: write_zip(path, files, zipfile.ZIP_STORED),
    "tar": write_tar,
}


@pytest.mark.parametrize("kind", WRITERS)
def test_every_file_is_read_where_it_lies(kind: str, tmp_path: Path) -> None:
    hidden = {"__MACOSX/a/._1.png": b"?", ".DS_Store": b"?", "a/.hidden": b"?"}
    path = WRITERS[kind](tmp_path / "archive", {**{f"./{name}": data for name, data in FILES.items()}, **hidden})
    found = list_archive(path)
    assert {name: member.open().read() for name, member in found.items()} == FILES
    assert {name: bytes(member.map()) for name, member in found.items()} == FILES
    assert {name: member.size for name, member in found.items()} == {name: len(data) for name, data in FILES.items()}
    assert found["a/1.png"].name == f"{path}/a/1.png"
    assert [entry.name for entry in tmp_path.iterdir()] == ["archive"]  # nothing is extracted


@pytest.mark.parametrize("kind", WRITERS)
def test_many_threads_read_at_once(kind: str, tmp_path: Path) -> None:
    """Members are longer than what a file buffers, and read often, so that threads come between each other's steps."""
    files = {f"{number}.png": np.random.default_rng(number).bytes(30_000) for number in range(16)}
    found = list_archive(WRITERS[kind](tmp_path / "archive", files))
    wrong: list[object] = []

    def read(seed: int) -> None:
        for number in np.random.default_rng(seed).integers(0, 16, 1500 if kind == "tar" else 100):
            try:
                if found[f"{number}.png"].open().read() != files[f"{number}.png"]:
                    wrong.append(number)
            except DataError as error:
                wrong.append(error)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


BAD_NAMES = {
    "../evil": "leads out of the archive",
    "a/../../evil": "leads out of the archive",
    "a/..": "leads out of the archive",
    "/etc/evil": "is no relative path",
    "//host/share": "is no relative path",
    "C:/evil": "is no relative path",
    "c:evil": "is no relative path",
    "..\\evil": "is no relative path",
    "a\\b.png": "is no relative path",
    "a\nb.png": "cannot be printed",
}


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_lead_elsewhere_are_refused(kind: str, name: str, tmp_path: Path) -> None:
    path = WRITERS[kind](tmp_path / "archive", {"fine.png": b"x", name: b"y"})
    with pytest.raises(DataError, match=rf"archive {path}: entry .*{BAD_NAMES[name]}") as caught:
        list_archive(path)
    assert repr(name) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_a_tar_are_refused(kind: bytes, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        info = tarfile.TarInfo("images/link.png")
        info.type, info.linkname = kind, "/etc/passwd"
        file.addfile(info)
    with pytest.raises(DataError, match=r"a.tar: entry 'images/link.png' is a link or a device"):
        list_archive(tmp_path / "a.tar")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO])
def test_links_and_devices_in_a_zip_are_refused(kind: int, tmp_path: Path) -> None:
    info = zipfile.ZipInfo("images/link.png")
    info.external_attr = (kind | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr(info, "/etc/passwd")
    with pytest.raises(DataError, match=r"a.zip: entry 'images/link.png' is a link or a device"):
        list_archive(tmp_path / "a.zip")


@pytest.mark.parametrize("kind", WRITERS)
def test_an_entry_that_is_there_twice_is_refused(kind: str, tmp_path: Path) -> None:
    path = WRITERS[kind](tmp_path / "archive", {"a/1.png": b"x", "a/./1.png": b"y"})
    with pytest.raises(DataError, match=r"entry a/1.png is there twice"):
        list_archive(path)


def changed(path: Path, field: int, value: int, width: str = "<I") -> None:
    """Write into the only entry's record in a zip's directory."""
    data = bytearray(path.read_bytes())
    struct.pack_into(width, data, data.find(b"PK\x01\x02") + field, value)
    path.write_bytes(data)


def test_an_encrypted_entry_is_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"1.png": b"x"})
    changed(path, 8, 1, "<H")
    with pytest.raises(DataError, match="a.zip: entry 1.png is encrypted; pack it again without a password"):
        list_archive(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, 99])
def test_other_methods_of_packing_are_refused(method: int, tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"1.png": b"x"})
    changed(path, 10, method, "<H")
    with pytest.raises(DataError, match=f"entry 1.png is damaged .method {method} of packing"):
        list_archive(path)


def test_an_entry_larger_than_it_claims_is_not_unpacked(tmp_path: Path) -> None:
    """100 MB of zeros that claim to be 10 bytes: what is read stops there."""
    path = write_zip(tmp_path / "a.zip", {"1.png": bytes(100_000_000)})
    changed(path, 24, 10)
    member = list_archive(path)["1.png"]
    for read in (member.open, member.map):
        with pytest.raises(DataError, match=r"a.zip/1.png is damaged .*fetch the archive again"):
            read()


def test_an_entry_smaller_than_it_claims_is_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"1.png": b"x" * 50})
    changed(path, 24, 1000)
    with pytest.raises(DataError, match=r"a.zip/1.png is damaged"):
        list_archive(path)["1.png"].open()


def test_a_bomb_is_refused_by_what_it_claims(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"1.png": b"x"})
    changed(path, 24, 3 << 30)
    with pytest.raises(
        DataError, match="entry 1.png brings .* to 3221225472 bytes, more than 100 times .* bomb: remove it"
    ):
        list_archive(path)


def test_an_image_larger_than_any_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members, "LARGEST_READ", 100)
    monkeypatch.setattr(zip_reader, "LARGEST_MAPPED", 200)
    for kind, writer in WRITERS.items():
        member = list_archive(writer(tmp_path / kind, {"1.png": bytes(300)}))["1.png"]
        with pytest.raises(DataError, match="1.png has 300 bytes, but an image or a table has at most 100; remove it"):
            member.open()
        if kind == "zip":
            with pytest.raises(DataError, match="has 300 bytes, but at most 200 are unpacked into memory; extract"):
                member.map()
        else:
            assert member.map().nbytes == 300


@pytest.mark.parametrize(("mode", "suffix", "tool"), [("w:gz", "tgz", "gunzip"), ("w:bz2", "tar.bz2", "bunzip2"),
                         ("w:xz", "tar.xz", "unxz")])  # fmt: skip
def test_a_compressed_tar_is_refused_with_its_remedy(mode: str, suffix: str, tool: str, tmp_path: Path) -> None:
    path = write_tar(tmp_path / f"a.{suffix}", FILES, mode)
    with pytest.raises(DataError, match=f"compressed as a whole.*decompress it with: {tool} {path}"):
        list_archive(path)
    with pytest.raises(DataError, match=f"decompress it with: {tool}"):
        list(look_in(tmp_path))


@pytest.mark.parametrize("kind", WRITERS)
def test_every_cut_is_one_line(kind: str, tmp_path: Path) -> None:
    data = WRITERS[kind](tmp_path / "whole", {"a.png": b"a" * 700, "b.png": b"b" * 700}).read_bytes()
    path, messages = tmp_path / "cut", []
    for length in range(0, 1900 if kind == "tar" else len(data), 17):
        path.write_bytes(data[:length])
        try:
            found = list_archive(path)
        except DataError as error:
            messages.append(str(error))
        else:
            assert kind == "tar"
            assert all(len(member.open().read()) == 700 for member in found.values())
    assert messages
    assert all(str(path) in message and "\n" not in message for message in messages)


@pytest.mark.parametrize("kind", WRITERS)
def test_noise_is_one_line_or_data(kind: str, tmp_path: Path) -> None:
    data = np.frombuffer(
        WRITERS[kind](tmp_path / "whole", {"a.png": b"a" * 300, "b.png": b"b" * 300}).read_bytes(), np.uint8
    )
    rng = np.random.default_rng(0)
    path, messages = tmp_path / "noisy", []
    for _ in range(300):
        noisy = data[:2048].copy()
        noisy[rng.integers(0, len(noisy), 3)] = rng.integers(0, 256, 3)
        path.write_bytes(noisy.tobytes())
        try:
            for member in list_archive(path).values():
                member.open()
                member.map()
        except DataError as error:
            messages.append(str(error))
    assert messages
    assert not any("\n" in message for message in messages)


def test_a_tar_claims_no_more_than_it_has(tmp_path: Path) -> None:
    info = tarfile.TarInfo("1.png")
    info.size = 1 << 40
    (tmp_path / "a.tar").write_bytes(info.tobuf() + b"x" * 512)
    with pytest.raises(
        DataError, match="entry 1.png claims 1099511627776 bytes, more than the archive has; it is truncated"
    ):
        list_archive(tmp_path / "a.tar")


def test_a_mapped_part_ends_where_the_file_does(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"0123456789")
    assert bytes(map_file(path, 2, 3)) == b"234"
    with pytest.raises(DataError, match="ends before byte 12; it is truncated"):
        map_file(path, 2, 10)
