"""Opening a store, which is packed first where it is missing, damaged or of another source."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import filelock
import platformdirs

from metalearn.datamodules.store.header import encode_header, fingerprint
from metalearn.datamodules.store.packer import Packer
from metalearn.datamodules.store.store import ImageStore
from metalearn.errors import DataError

__all__ = ["cache_folder", "open_or_pack"]

log = logging.getLogger(__name__)

Pack = Callable[[Packer], dict[str, Any] | None]
"""Adds the classes; what it returns is remembered as ``meta``."""


def cache_folder(cache_dir: str | None) -> Path:
    """The argument, else the environment variable METALEARN_CACHE, else the user's cache folder."""
    return Path(cache_dir or os.environ.get("METALEARN_CACHE") or platformdirs.user_cache_dir("metalearn"))


def open_or_pack(
    name: str,
    source: str,
    shape: tuple[int, int, int],
    pack: Pack,
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
    store = _try_open(path, source, verify)
    if store is None:
        with _lock_alone(folder, path):
            store = _try_open(path, source, verify)
            if store is None:
                _pack(path, source, shape, pack)
                store = ImageStore(path, source)
    return store


@contextlib.contextmanager
def _lock_alone(folder: Path, path: Path) -> Iterator[None]:
    """Let one process at a time pack a store; one that must wait says so once."""
    with _name_unwritable(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(path.with_suffix(".lock"))
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            log.warning("store %s: another process is packing it; waiting until it is done", path)
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


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


def _pack(path: Path, source: str, shape: tuple[int, int, int], pack: Pack) -> None:
    for stale in path.parent.glob(f".{path.name}.*.part"):  # under the lock, so its writer is dead
        stale.unlink(missing_ok=True)
    body = path.with_name(f".{path.name}.{os.getpid()}.part")
    whole = path.with_name(f".{path.name}.{os.getpid()}.whole.part")
    try:
        with _name_unwritable(path.parent):
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
                file.write(encode_header(header))
                with body.open("rb") as data:
                    while block := data.read(1 << 22):
                        file.write(block)
                file.flush()
                os.fsync(file.fileno())
            os.replace(whole, path)
    finally:
        body.unlink(missing_ok=True)
        whole.unlink(missing_ok=True)


@contextlib.contextmanager
def _name_unwritable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"cache folder {folder} cannot be written ({error.strerror or error}); free space there, or set cache_dir or the "
            "environment variable METALEARN_CACHE to a folder that can"
        ) from error
