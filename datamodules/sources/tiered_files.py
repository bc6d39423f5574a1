"""tieredImageNet's files by Ren et al. 2018: images in one file a split, labels in another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from metalearn.datamodules.sources.caches import decode_name, enter_rows, load_dict, read_labels
from metalearn.datamodules.sources.listing import SPLITS, Entry, ListedClass
from metalearn.datamodules.sources.members import Member
from metalearn.datamodules.sources.numpy_files import load_npz
from metalearn.datamodules.sources.pickles import load_arrays
from metalearn.datamodules.sources.pixels import EncodedImages, PixelArray
from metalearn.datamodules.sources.places import Place
from metalearn.errors import DataError

__all__ = ["list_ren"]

NEEDS = "label_specific, label_general and their names"


def list_ren(place: Place, images: str) -> list[ListedClass] | None:
    """The classes of Ren et al.'s files.

    Args:
        place: where they may be.
        images: the pattern of the files of images, such as ``"{}_images_png.pkl"``.

    Returns:
        the classes; ``None`` where a file is not there.

    Raises:
        DataError: a file is damaged, or images and labels disagree.
    """
    files = place.files()
    if not all(images.format(split) in files and f"{split}_labels.pkl" in files for split in SPLITS):
        return None
    listed = []
    for split in SPLITS:
        listed += _read_split(split, files[images.format(split)], files[f"{split}_labels.pkl"])
    return _number_namesakes(listed)


def _number_namesakes(listed: list[ListedClass]) -> list[ListedClass]:
    """ImageNet calls two of its classes crane, and two maillot."""
    count = Counter(listed_class.name for listed_class in listed)
    seen: Counter[str] = Counter()
    renamed = []
    for listed_class in listed:
        name = listed_class.name
        seen[name] += 1
        renamed.append(listed_class._replace(name=f"{name} {seen[name]}") if count[name] > 1 else listed_class)
    return renamed


def _read_split(split: str, images: Member, table: Member) -> list[ListedClass]:
    content = load_dict(table, NEEDS)
    specific = content.get("label_specific")
    count = len(specific) if isinstance(specific, (list, np.ndarray)) else 0
    labels = read_labels(specific, count, table.name)
    groups = read_labels(content["label_general"], count, table.name) if "label_general" in content else None
    if not count:
        raise DataError(f"pickle {table.name} labels no image; fetch it again")
    by_class = np.argsort(labels, kind="stable")
    numbers_of_classes, starts = np.unique(labels[by_class], return_index=True)
    entries = _list_entries(images, count)
    listed = []
    for label, numbers in zip(numbers_of_classes.tolist(), np.split(by_class, starts[1:]), strict=True):
        group = ""
        if groups is not None:
            general = np.unique(groups[numbers])
            if len(general) > 1:
                raise DataError(f"pickle {table.name} has class {label} in {len(general)} categories; fetch it again")
            group = _look_up_name(content.get("label_general_str"), int(general[0]), f"{split} category")
        name = _look_up_name(content.get("label_specific_str"), label, f"{split} class")
        listed.append(ListedClass(split, name, [entries[number] for number in numbers.tolist()], group))
    return listed


def _list_entries(images: Member, count: int) -> Sequence[Entry]:
    if images.name.endswith(".npz"):
        pixels = PixelArray(load_npz(images, "images"), images.name)
        if len(pixels) != count:
            raise DataError(
                f"{images.name} holds {len(pixels)} images, but there are {count} labels; fetch both files again"
            )
        return enter_rows(pixels, np.arange(count), images)
    encoded = EncodedImages(partial(_load_images, images), count, images.name)
    return [Entry(str(number), images.stamp, partial(encoded.read, number)) for number in range(count)]


def _load_images(member: Member) -> Any:
    return load_arrays(member.map(), member.name)


def _look_up_name(names: Any, number: int, otherwise: str) -> str:
    """The name of a label, as a list or a dict has it."""
    if isinstance(names, (list, tuple, np.ndarray)) and 0 <= number < len(names):
        return decode_name(names[number])
    if isinstance(names, dict) and number in names:
        return decode_name(names[number])
    return f"{otherwise} {number}"
