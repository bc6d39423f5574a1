"""A CSV table for each split, as miniImageNet is published."""

from __future__ import annotations

import csv
import io

from metalearn.datamodules.sources.listing import SPLITS, Entry, ListedClass, enter_member
from metalearn.datamodules.sources.members import Member
from metalearn.datamodules.sources.places import Place
from metalearn.errors import DataError

__all__ = ["list_tables"]


def list_tables(place: Place) -> list[ListedClass] | None:
    """``images/`` with ``train.csv``, ``val.csv`` and ``test.csv``, whose columns are ``filename,label``."""
    files = place.files()
    if not all(f"{split}.csv" in files for split in SPLITS):
        return None
    images = place.folders().get("images", place).files()
    seen = _Seen()
    listed: list[ListedClass] = []
    for split in SPLITS:
        table = files[f"{split}.csv"]
        classes: dict[str, list[Entry]] = {}
        for line, name, label in _read_rows(table):
            where = f"line {line} of {table.name}"
            if name not in images:
                raise DataError(f"{where} names {name}, which is not among the images; add the image or remove the row")
            seen.add(where, name, label, split)
            classes.setdefault(label, []).append(enter_member(name, images[name]))
        if not classes:
            raise DataError(f"table {table.name} lists no image; restore it")
        for label, entries in sorted(classes.items()):
            listed.append(ListedClass(split, label, sorted(entries, key=lambda entry: entry.name)))
    return listed


class _Seen:
    """The images and classes of the rows so far."""

    def __init__(self) -> None:
        self.split_of: dict[str, str] = {}
        self.row_of: dict[str, str] = {}

    def add(self, where: str, name: str, label: str, split: str) -> None:
        """Raise where an image is there already, or its class in another split."""
        if name in self.row_of:
            raise DataError(f"{where} names {name}, as {self.row_of[name]} does already; remove one of the rows")
        self.row_of[name] = where
        first = self.split_of.setdefault(label, split)
        if first != split:
            raise DataError(
                f"class {label} is in {first}.csv and, in {where}, in {split}.csv too, but it belongs to one split; remove the "
                "rows of one"
            )


def _read_rows(table: Member) -> list[tuple[int, str, str]]:
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
