"""The forms in which people hold few-shot data sets, and the search for them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from metalearn.datamodules.sources.images import IMAGES
from metalearn.datamodules.sources.listing import SPLITS, ListedClass, check_classes, enter_member, log_once
from metalearn.datamodules.sources.places import Place, look_in
from metalearn.errors import DataError

__all__ = [
    "SPLIT_FOLDERS",
    "Form",
    "find_classes",
    "list_folder",
    "list_split_folders",
]

FOLDERS = {"train": ("train",), "val": ("val", "validation", "valid"), "test": ("test",)}


class Form(NamedTuple):
    """A form of a data set.

    Attributes:
        title: what it is, in a message.
        classes: lists its classes in a place, or gives ``None`` where the place does not have this form.
    """

    title: str
    classes: Callable[[Place], list[ListedClass] | None]


def find_classes(root: Path, forms: Sequence[Form], title: str, remedy: str) -> list[ListedClass]:
    """The classes in the first place and form that fit; which they are is logged.

    Args:
        root: a folder or an archive.
        forms: tried in this order.
        title: the data set's name.
        remedy: ends the message where nothing fits.

    Raises:
        DataError: nothing fits, or a class is in two splits.
    """
    for place in look_in(root):
        for form in forms:
            listed = form.classes(place)
            if listed is not None:
                log_once(logging.INFO, f"{title} in {place.name}: {form.title}")
                return check_classes(listed, place.name)
    known = "; or ".join(form.title for form in forms)
    raise DataError(f"root {root} holds no {title}: it must hold {known}; or one zip or tar of that; {remedy}")


def list_split_folders(place: Place, group_of: Callable[[str], str] = lambda _: "") -> list[ListedClass] | None:
    """``train/``, ``val/`` and ``test/``, each with a folder of images per class."""
    folders = place.folders()
    splits = {split: next((name for name in FOLDERS[split] if name in folders), None) for split in SPLITS}
    if not all(splits.values()):
        return None
    listed = []
    for split, name in splits.items():
        classes = folders[name or ""].folders()
        if not classes:
            raise DataError(f"{folders[name or ''].name} holds no class; it must hold a folder of images per class")
        listed += [list_folder(split, label, folder, group_of(label)) for label, folder in classes.items()]
    return listed


def list_folder(split: str, name: str, folder: Place, group: str = "") -> ListedClass:
    """The images of a class's folder, by their names.

    Raises:
        DataError: there are none.
    """
    entries = [enter_member(file, member) for file, member in folder.files().items() if file.lower().endswith(IMAGES)]
    if not entries:
        raise DataError(f"class folder {folder.name} holds no image; add some ({', '.join(IMAGES)}) or remove it")
    return ListedClass(split, name, entries, group)


SPLIT_FOLDERS = Form("train/, val/ and test/ with a folder per class", list_split_folders)
