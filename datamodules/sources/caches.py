"""Pickled caches of a split: an array of images, and which are of which class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from metalearn.datamodules.sources.listing import SPLITS, Entry, ListedClass
from metalearn.datamodules.sources.members import Member
from metalearn.datamodules.sources.pickles import load_arrays
from metalearn.datamodules.sources.pixels import PixelArray
from metalearn.datamodules.sources.places import Place
from metalearn.errors import DataError

__all__ = ["decode_name", "enter_rows", "find_caches", "list_caches", "load_dict", "read_labels"]

SPLIT_NAMES = {"train": ("train", "train_phase_train"), "val": ("val", "validation"), "test": ("test",)}


def find_caches(place: Place, patterns: Sequence[str]) -> dict[str, Member] | None:
    """For each split its file, by the first pattern (``"cache-{}.pkl"``) that all three follow."""
    files = place.files()
    for pattern in patterns:
        members = {
            split: files[name]
            for split in SPLITS
            for name in [pattern.format(word) for word in reversed(SPLIT_NAMES[split])]
            if name in files
        }
        if len(members) == len(SPLITS):
            return members
    return None


def list_caches(place: Place, patterns: Sequence[str]) -> list[ListedClass] | None:
    """The classes of files by one of the patterns. Each file is a dict of either of these.

    - ``image_data`` and ``class_dict``: for each class's name the numbers of its images, or
    - ``data`` (or ``images``, ``image_data``) and ``labels``: a number for each image; classes are called as
      ``catname2label`` says, else by split and number.
    """
    members = find_caches(place, patterns)
    if members is None:
        return None
    return [listed for split, member in members.items() for listed in _list_cache(split, member)]


def _list_cache(split: str, member: Member) -> list[ListedClass]:
    content = load_dict(member, "image_data and class_dict, or data and labels")
    images = next((content[key] for key in ("image_data", "data", "images") if key in content), None)
    pixels = PixelArray(images, member.name)
    if "class_dict" in content:
        classes = _read_classes(content["class_dict"], len(pixels), member.name)
    elif "labels" in content:
        labels = read_labels(content["labels"], len(pixels), member.name)
        called = content.get("catname2label")
        name_of = {label: str(name) for name, label in called.items()} if isinstance(called, dict) else {}
        classes = {
            name_of.get(label, f"{split}/{label}"): np.flatnonzero(labels == label)
            for label in np.unique(labels).tolist()
        }
    else:
        raise DataError(f"pickle {member.name} has neither class_dict nor labels; fetch it again from its authors")
    return [
        ListedClass(split, name, enter_rows(pixels, numbers, member))
        for name, numbers in sorted(classes.items(), key=_order)
    ]


def load_dict(member: Member, needs: str) -> dict[Any, Any]:
    """A pickled dict.

    Raises:
        DataError: it is none; ``needs`` says what it should have held.
    """
    content = load_arrays(member.map(), member.name)
    if not isinstance(content, dict):
        raise DataError(f"pickle {member.name} holds a {type(content).__name__}, but it must hold a dict of {needs}; fetch it "
                        "again from its authors")  # fmt: skip
    return content


def enter_rows(pixels: PixelArray, numbers: np.ndarray, member: Member) -> list[Entry]:
    """The images with these numbers."""
    return [Entry(str(number), member.stamp, partial(pixels.read, number)) for number in numbers.tolist()]


def read_labels(labels: Any, count: int, name: str) -> np.ndarray:
    """Labels ``[n]`` as int64.

    Raises:
        DataError: they are no whole numbers, or not one for each of ``count`` images.
    """
    values = np.asarray(labels) if isinstance(labels, (list, tuple, np.ndarray)) else np.empty(0, object)
    if values.dtype.kind not in "iu" or values.shape != (count,):
        raise DataError(
            f"labels in {name} are {values.dtype} {list(values.shape)}, but there must be a whole number for each of {count} "
            "images; fetch it again from its authors"
        )
    return values.astype(np.int64)


def decode_name(value: Any) -> str:
    """A name, which Python 2 pickled as bytes."""
    return bytes(value).decode("utf-8", "replace") if isinstance(value, (bytes, memoryview)) else str(value)


def _read_classes(classes: Any, count: int, name: str) -> dict[str, np.ndarray]:
    if not isinstance(classes, Mapping):
        raise DataError(
            f"class_dict in {name} is a {type(classes).__name__}, but it must be a dict of lists; fetch it again"
        )
    seen = np.zeros(count, bool)
    numbers_of = {}
    for key, numbers in classes.items():
        listed = np.asarray(numbers) if isinstance(numbers, (list, tuple, np.ndarray)) else np.empty(0, object)
        if listed.ndim != 1 or listed.dtype.kind not in "iu" or not len(listed):
            raise DataError(f"class {key} in {name} lists no images; remove it, or fetch the file again")
        if listed.min() < 0 or listed.max() >= count:
            raise DataError(
                f"class {key} in {name} lists images from {listed.min()} to {listed.max()}, but there are {count}; fetch the "
                "file again"
            )
        if seen[listed].any() or len(np.unique(listed)) != len(listed):
            raise DataError(f"class {key} in {name} lists an image that is listed already; fetch the file again")
        seen[listed] = True
        numbers_of[str(key)] = listed.astype(np.int64)
    return numbers_of


def _order(item: tuple[str, np.ndarray]) -> tuple[bool, int, str]:
    """Numbers in their order, behind them names in theirs."""
    number = item[0].rpartition("/")[2]
    return (not number.isdecimal(), int(number) if number.isdecimal() else 0, item[0])
