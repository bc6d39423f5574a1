"""The forms in which people hold few-shot data sets, and the search for them."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from metalearn.datamodules.sources.images import IMAGES
from metalearn.datamodules.sources.listing import SPLITS, Entry, ListedClass, check_classes, log_once, read_member
from metalearn.datamodules.sources.members import Member
from metalearn.datamodules.sources.places import Place, look_in
from metalearn.errors import DataError

__all__ = [
    "Form",
    "find_classes",
    "image_entry",
    "list_folder",
    "list_split_folders",
    "list_tables",
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
        listed += [list_folder(split, each, folder, group_of(each)) for each, folder in classes.items()]
    return listed


def list_folder(split: str, name: str, folder: Place, group: str = "") -> ListedClass:
    """The images of a class's folder, by their names.

    Raises:
        DataError: there are none.
    """
    entries = [image_entry(file, member) for file, member in folder.files().items() if file.lower().endswith(IMAGES)]
    if not entries:
        raise DataError(f"class folder {folder.name} holds no image; add some ({', '.join(IMAGES)}) or remove it")
    return ListedClass(split, name, entries, group)


def list_tables(place: Place) -> list[ListedClass] | None:
    """``images/`` with ``train.csv``, ``val.csv`` and ``test.csv``, whose columns are ``filename,label``."""
    files = place.files()
    if not all(f"{split}.csv" in files for split in SPLITS):
        return None
    images = place.folders().get("images", place).files()
    listed: list[ListedClass] = []
    label_in: dict[str, str] = {}
    row_of: dict[str, str] = {}
    for split in SPLITS:
        table = files[f"{split}.csv"]
        classes: dict[str, list[Entry]] = {}
        for line, name, label in _rows(table):
            where = f"line {line} of {table.name}"
            if name not in images:
                raise DataError(f"{where} names {name}, which is not among the images; add the image or remove the row")
            if name in row_of:
                raise DataError(f"{where} names {name}, as {row_of[name]} does already; remove one of the rows")
            row_of[name] = where
            if label_in.setdefault(label, split) != split:
                raise DataError(
                    f"class {label} is in {label_in[label]}.csv and, in {where}, in {split}.csv too, but it belongs to one "
                    "split; remove the rows of one"
                )
            classes.setdefault(label, []).append(image_entry(name, images[name]))
        if not classes:
            raise DataError(f"table {table.name} lists no image; restore it")
        listed += [ListedClass(split, label, sorted(found, key=_name)) for label, found in sorted(classes.items())]
    return listed


def _rows(table: Member) -> list[tuple[int, str, str]]:
    """Line, file name and label of each row."""
    try:
        text = table.open().read().decode("utf-8-sig")
        reader = csv.DictReader(io.StringIO(text, newline=""))
        columns = [column or "" for column in reader.fieldnames or []]
        if text.strip() and not {"filename", "label"} <= set(columns):
            raise DataError(f"table {table.name} has the columns {','.join(columns)!r}, but it must have filename,label; "
                            "restore its first line")  # fmt: skip
        rows = [(reader.line_num, row["filename"], row["label"]) for row in reader]
    except UnicodeDecodeError as error:
        raise DataError(
            f"table {table.name} is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from error
    except csv.Error as error:
        raise DataError(f"table {table.name} cannot be read ({error}); restore it") from error
    for line, name, label in rows:
        if not name or not label:
            raise DataError(
                f"line {line} of {table.name} has the filename {name!r} and the label {label!r}, but a row needs both; complete "
                "or remove it"
            )
    return rows


def image_entry(name: str, member: Member) -> Entry:
    """An image file."""
    return Entry(name, member.stamp, partial(read_member, member))


def _name(entry: Entry) -> str:
    return entry.name
