"""Tiny MNIST and 20 Newsgroups files."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

GROUPS = ("alt.atheism", "rec.autos", "sci.space")


def write_idx(path: Path, values: np.ndarray, pack: bool = True) -> None:
    data = b"\0\0\x08" + bytes([values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()
    path.write_bytes(gzip.compress(data) if pack else data)


def make_mnist(root: Path, count: int = 200, part: str = "t10k", size: int = 8, pack: bool = True) -> Path:
    """Digits that differ in where they are bright."""
    root.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(part))
    labels = (np.arange(count) % 10).astype(np.uint8)
    images = rng.integers(0, 80, (count, size, size)).astype(np.uint8)
    for image, label in zip(images.reshape(count, -1), labels, strict=True):
        image[5 * label : 5 * label + 6] += np.uint8(150)
    ending = ".gz" if pack else ""
    write_idx(root / f"{part}-images-idx3-ubyte{ending}", images, pack)
    write_idx(root / f"{part}-labels-idx1-ubyte{ending}", labels, pack)
    return root


def make_posts(each: int = 12) -> dict[str, bytes]:
    """Posts by their paths; each group has words of its own, and noise."""
    found = {}
    for part in ("train", "test"):
        for group, name in enumerate(GROUPS):
            for number in range(each):
                rng = np.random.default_rng([group, number, len(part)])
                words = [f"own{group}{word}" for word in rng.integers(0, 6, 4)]
                words += [f"noise{word}" for word in rng.integers(0, 40, 12)]
                found[f"20news-bydate-{part}/{name}/{1000 + number}"] = "\t".join(words).encode() + b"\t\xe9"
    return found


def make_newsgroups(root: Path, packed: bool = True, mode: Any = "w:xz", each: int = 12) -> Path:
    """The archive, or the two folders."""
    root.mkdir(parents=True, exist_ok=True)
    if not packed:
        for name, data in make_posts(each).items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(data)
        return root
    with tarfile.open(root / "20news-bydate.tar.xz", mode) as archive:
        for name, data in make_posts(each).items():
            add(archive, name, data)
    return root


def add(archive: tarfile.TarFile, name: str, data: bytes = b"", **fields: object) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    archive.addfile(info, io.BytesIO(data) if info.size == len(data) else None)  # a header that lies


def make_topics(root: Path, topics: Sequence[str], each: int = 12) -> Path:
    """The archive with a few posts of each topic, with headers; the words of a topic are its own, and noise."""
    root.mkdir(parents=True, exist_ok=True)
    with tarfile.open(root / "20news-bydate.tar.xz", "w:xz") as archive:
        for number, topic in enumerate(topics):
            for post in range(each):
                rng = np.random.default_rng([number, post])
                words = [f"own{number}x{word}" for word in rng.integers(0, 6, 4)]
                words += [f"noise{word}" for word in rng.integers(0, 40, rng.integers(3, 12))]
                head = f"From: someone@host{number}\tSubject: Re: about{number}\tLines: 3\t\t"
                part = "train" if post % 2 else "test"
                add(archive, f"20news-bydate-{part}/{topic}/{1000 + post}", (head + "\t".join(words)).encode())
    return root
