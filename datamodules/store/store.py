"""The packed image store: one file of uint8 images, class by class, mapped read-only so that processes share its pages."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import numpy as np
import platformdirs

from metalearn.errors import DataError

__all__ = ["Contents", "ImageStore", "Packer", "cache_folder", "fingerprint", "open_or_pack"]

log = logging.getLogger(__name__)

MAGIC = b"MLSTORE\n"
VERSION = 3
ALIGNMENT = 4096
FIELDS = {"shape", "names", "counts", "groups", "sums", "list", "sha256", "source", "meta", "digest"}
LISTED = 1 << 31
"""The most bytes that the names of images may take."""


def cache_folder(cache_dir: str | None) -> Path:
    """The argument, else the environment variable METALEARN_CACHE, else the user's cache folder."""
    return Path(cache_dir or os.environ.get("METALEARN_CACHE") or platformdirs.user_cache_dir("metalearn"))


class Contents(NamedTuple):
    """What a store will hold, known before it is packed.

    Attributes:
        names: a name for each class.
        counts: ``[classes]`` images of each class.
        groups: the group of each class, or ``""``.
        meta: what is remembered with them.
    """

    names: list[str]
    counts: np.ndarray
    groups: list[str]
    meta: dict[str, Any]


class ImageStore:
    """A store that is open for reading.

    Attributes:
        images: ``[total, C, H, W]`` uint8, mapped.
        names: a name for each class.
        counts: ``[classes]`` images of each class.
        offsets: ``[classes]`` the first image of each class.
        groups: the group of each class, or ``""``.
        meta: what the packer wanted remembered.
    """

    def __init__(self, path: Path, source: str) -> None:
        self.path, self.source = path, source
        self._header, begin = _read_header(path)
        if self._header["source"] != source:
            raise DataError(f"store {path} was packed from another source; remove it, and it is packed again")
        shape = tuple(self._header["shape"])
        self._end = begin + int(np.prod(shape))
        size = self._end + self._header["list"]
        if path.stat().st_size != size:
            raise DataError(
                f"store {path} has {path.stat().st_size} bytes, but its header says {size}; remove it, and it is packed again"
            )
        self.images = np.memmap(path, np.uint8, mode="r", offset=begin, shape=shape)
        self.names: list[str] = self._header["names"]
        self.counts = np.asarray(self._header["counts"], np.int64)
        self.offsets = np.concatenate([[0], np.cumsum(self.counts)[:-1]])
        self.groups: list[str] = self._header["groups"]
        self.meta: dict[str, Any] = self._header["meta"]
        self._names: list[list[str]] | None = None

    def image_names(self, number: int) -> list[str] | None:
        """The names of the images of a class, ``None`` where they have none. The list of all is read when first asked for."""
        if not self._header["list"]:
            return None
        if self._names is None:
            with self.path.open("rb") as file:
                file.seek(self._end)
                self._names = json.loads(zlib.decompressobj().decompress(file.read(self._header["list"]), LISTED))
        return self._names[number]

    def statistics(self, classes: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The mean and the standard deviation of each channel, of pixels in 0..1, over all images of some classes."""
        first, second = np.asarray([self._header["sums"][number] for number in classes], object).sum(0)
        pixels = int(self.counts[classes].sum()) * int(np.prod(self.images.shape[2:]))
        means = [int(value) / pixels / 255 for value in first]
        # whole numbers until the end: a constant channel has a deviation of exactly 0
        spread = [
            (pixels * int(square) - int(value) ** 2) ** 0.5 / pixels / 255
            for value, square in zip(first, second, strict=True)
        ]
        return tuple(means), tuple(std if std > 0 else 1.0 for std in spread)

    def __reduce__(self) -> tuple[Any, ...]:
        return ImageStore, (self.path, self.source)

    def verify(self) -> None:
        """Read everything once and compare its checksum.

        Raises:
            DataError: the data is not what was packed.
        """
        digest = hashlib.sha256(self.images.reshape(-1).data)
        with self.path.open("rb") as file:
            file.seek(self._end)
            digest.update(file.read(self._header["list"]))
        if digest.hexdigest() != self._header["sha256"]:
            raise DataError(f"store {self.path} does not match its checksum; remove it, and it is packed again")


class Packer:
    """Receives the images of a store, class by class."""

    def __init__(self, file: Any, shape: tuple[int, int, int]) -> None:
        self._file, self._shape = file, shape
        self._digest = hashlib.sha256()
        self._images: list[list[str]] = []
        self.names: list[str] = []
        self.groups: list[str] = []
        self.counts: list[int] = []
        self.sums: list[list[list[int]]] = []

    def add(self, name: str, images: np.ndarray, group: str = "", image_names: Sequence[str] = ()) -> None:
        """Append a class: ``images`` ``[n, C, H, W]`` uint8, the group it is in, and a name for each image or for none."""
        if images.shape[1:] != self._shape or images.dtype != np.uint8:
            raise ValueError(f"images are {images.dtype} {images.shape}, the store holds uint8 {self._shape}")
        if image_names and len(image_names) != len(images):
            raise ValueError(f"there are {len(image_names)} names for {len(images)} images of class {name}")
        data = np.ascontiguousarray(images).tobytes()
        self._file.write(data)
        self._digest.update(data)
        self.names.append(name)
        self.groups.append(group)
        self.counts.append(len(images))
        self._images.append(list(image_names))
        counted = [np.bincount(images[:, channel].ravel(), minlength=256) for channel in range(self._shape[0])]
        values = np.arange(256)
        self.sums.append([[int(count @ values**power) for count in counted] for power in (1, 2)])

    def finish(self) -> int:
        """Append the names of the images, and return how many bytes they take."""
        if not any(self._images):
            return 0
        data = zlib.compress(json.dumps(self._images).encode())
        self._file.write(data)
        self._digest.update(data)
        return len(data)

    @property
    def sha256(self) -> str:
        """The checksum of what was added so far."""
        return self._digest.hexdigest()


def open_or_pack(
    name: str,
    source: str,
    shape: tuple[int, int, int],
    pack: Callable[[Packer], dict[str, Any] | None],
    cache_dir: str | None,
    verify: bool = False,
) -> ImageStore:
    """Open the store of this name, packing it first where it is missing, damaged, or of another source.

    Safe when several processes do it at once (one packs, the others wait), and when one is killed half-way: the file
    takes its place only when it is whole.

    Args:
        name: the file's stem.
        source: a fingerprint of what is packed; a store with another one is packed again.
        shape: ``(C, H, W)``.
        pack: adds the classes; what it returns is remembered as ``meta``.
        cache_dir: see :func:`cache_folder`.
        verify: check the checksum too.

    Raises:
        DataError: the cache folder cannot be written, or is full.
    """
    folder = cache_folder(cache_dir)
    path = folder / f"{name}.store"
    found = _try_open(path, source, verify)
    if found is not None:
        return found
    with _writable(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / f"{name}.lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            log.warning("store %s: another process is packing it; waiting until it is done", path)
            lock.acquire()
    try:
        found = _try_open(path, source, verify)
        if found is None:
            _pack(path, source, shape, pack)
            found = ImageStore(path, source)
    finally:
        lock.release()
    return found


def _try_open(path: Path, source: str, verify: bool) -> ImageStore | None:
    if not path.exists():
        return None
    try:
        store = ImageStore(path, source)
        if verify:
            store.verify()
    except (DataError, OSError) as error:
        log.warning("%s: packing it again", error)
        return None
    return store


def _pack(
    path: Path, source: str, shape: tuple[int, int, int], pack: Callable[[Packer], dict[str, Any] | None]
) -> None:
    for stale in path.parent.glob(f".{path.name}.*.part"):  # under the lock, so its writer is dead
        stale.unlink(missing_ok=True)
    body = path.with_name(f".{path.name}.{os.getpid()}.part")
    whole = path.with_name(f".{path.name}.{os.getpid()}.whole.part")
    try:
        with _writable(path.parent):
            with body.open("wb") as file:
                packer = Packer(file, shape)
                meta = pack(packer)
                listed = packer.finish()
            header = {
                "shape": [sum(packer.counts), *shape],
                "names": packer.names,
                "counts": packer.counts,
                "groups": packer.groups,
                "sums": packer.sums,
                "list": listed,
                "sha256": packer.sha256,
                "source": source,
                "meta": meta or {},
            }
            header["digest"] = fingerprint([json.dumps(header)])
            with whole.open("wb") as file:
                file.write(_encode_header(header))
                with body.open("rb") as data:
                    while block := data.read(1 << 22):
                        file.write(block)
                file.flush()
                os.fsync(file.fileno())
            os.replace(whole, path)
    finally:
        body.unlink(missing_ok=True)
        whole.unlink(missing_ok=True)


def _encode_header(header: dict[str, Any]) -> bytes:
    text = json.dumps(header).encode()
    start = MAGIC + struct.pack("<II", VERSION, len(text)) + text
    return start + b"\0" * (-len(start) % ALIGNMENT)


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    with path.open("rb") as file:
        start = file.read(len(MAGIC) + 8)
        if len(start) < len(MAGIC) + 8 or not start.startswith(MAGIC):
            raise DataError(f"store {path} is not a metalearn store; remove it, and it is packed again")
        version, length = struct.unpack("<II", start[len(MAGIC) :])
        if version != VERSION:
            raise DataError(f"store {path} has version {version}, but this release reads {VERSION}; remove it, and it is "
                            "packed again")  # fmt: skip
        text = file.read(length)
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"store {path} is cut short in its header; remove it, and it is packed again") from error
    if not _is_whole(header):
        raise DataError(f"store {path} has a damaged header; remove it, and it is packed again")
    used = len(MAGIC) + 8 + length
    return header, used + -used % ALIGNMENT


def _is_whole(header: Any) -> bool:
    """Whether every field is there, of its type, in agreement with the others, and as it was written."""
    if not isinstance(header, dict) or set(header) != FIELDS:
        return False
    written = {field: value for field, value in header.items() if field != "digest"}
    shape, names, counts, groups = header["shape"], header["names"], header["counts"], header["groups"]
    return (
        header["digest"] == fingerprint([json.dumps(written)])
        and all(isinstance(header[field], str) for field in ("sha256", "source"))
        and isinstance(header["meta"], dict)
        and all(isinstance(field, list) for field in (shape, names, counts, groups, header["sums"]))
        and all(type(number) is int and number >= 0 for number in (*shape, *counts, header["list"]))
        and all(isinstance(name, str) for name in (*names, *groups))
        and len(shape) == 4
        and len(names) == len(counts) == len(groups) == len(header["sums"])
        and sum(counts) == shape[0]
    )


@contextlib.contextmanager
def _writable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"cache folder {folder} cannot be written ({error.strerror or error}); free space there, or set cache_dir or the "
            "environment variable METALEARN_CACHE to a folder that can"
        ) from error


def fingerprint(parts: Sequence[object]) -> str:
    """A short digest of what a store is made from."""
    return hashlib.sha256(json.dumps([str(part) for part in parts]).encode()).hexdigest()[:16]
