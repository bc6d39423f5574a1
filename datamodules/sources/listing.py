"""What a source lists: classes, the split that each belongs to, and their images."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from metalearn.datamodules.sources.images import ImageSpec, read_image
from metalearn.datamodules.sources.members import Member
from metalearn.errors import DataError

__all__ = [
    "SPLITS",
    "Entry",
    "ListedClass",
    "check_classes",
    "enter_file",
    "enter_member",
    "log_once",
    "read_member",
    "stamp_file",
]

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
_LOGGED: set[str] = set()


class Entry(NamedTuple):
    """One image of a source.

    Attributes:
        name: names it in messages and in tables of tasks: a file's name, or a number.
        stamp: what tells it from another version of itself: size and time of writing, or size and checksum.
        read: its pixels, uint8 ``[C, size, size]``.
    """

    name: str
    stamp: tuple[int, ...]
    read: Callable[[ImageSpec], np.ndarray]


class ListedClass(NamedTuple):
    """One class of a source.

    Attributes:
        split: ``"train"``, ``"val"`` or ``"test"``.
        name: the class's name, once in a data set.
        entries: its images, in an order that is the same on every machine.
        group: the alphabet or superclass that it belongs to, or ``""``.
    """

    split: str
    name: str
    entries: Sequence[Entry]
    group: str = ""


def enter_file(file: Path, name: str | None = None) -> Entry:
    """An image file as an entry of a listing."""
    return Entry(name or file.name, stamp_file(file), partial(read_image, file))


def enter_member(name: str, member: Member) -> Entry:
    """An image in a folder or an archive as an entry of a listing."""
    return Entry(name, member.stamp, partial(read_member, member))


def read_member(member: Member, spec: ImageSpec, name: str | None = None) -> np.ndarray:
    """An image in a folder or an archive, as :func:`~metalearn.datamodules.sources.images.read_image` reads it."""
    return read_image(member.open(), spec, name or member.name)


def stamp_file(file: Path) -> tuple[int, int]:
    """What tells an edited file from the one that was packed: its size, and when it was last written in ns."""
    status = file.stat()
    return status.st_size, status.st_mtime_ns


def check_classes(listed: list[ListedClass], where: str, whole: bool = True) -> list[ListedClass]:
    """The classes sorted by split.

    Args:
        listed: the classes.
        where: what they lie in, for messages.
        whole: whether each split must have classes.

    Raises:
        DataError: a class is listed twice, or a split has none. One in two splits would be tested after it was trained on.
    """
    split_of: dict[str, str] = {}
    for listed_class in listed:
        split, name = listed_class.split, listed_class.name
        if name in split_of:
            raise DataError(
                f"class {name} is in {split_of[name]} and again in {split} of {where}, but it belongs to one split; remove one"
            )
        split_of[name] = split
    for split in SPLITS if whole else ():
        if split not in split_of.values():
            raise DataError(f"{where} has no class of the {split} split; it is not whole: fetch it again")
    return sorted(listed, key=lambda listed_class: SPLITS.index(listed_class.split))


def log_once(level: int, line: str) -> None:
    """Log a line that this process has not logged: a data set is looked at anew by every stage of a run."""
    if line not in _LOGGED:
        _LOGGED.add(line)
        log.log(level, line)
