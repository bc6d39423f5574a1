"""CSV tables of image files and their classes, as people write them."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from metalearn.datamodules.sources.listing import SPLITS, Entry, ListedClass, enter_file
from metalearn.errors import DataError

__all__ = ["read_label_table"]

COLUMNS = ("filename", "label", "split", "group")


def read_label_table(path: Path, root: Path) -> list[ListedClass]:
    """The classes of a table with the columns ``filename,label`` and, if it has them, ``split`` and ``group``.

    A byte-order mark and Windows line ends are read as well. File names are below ``root``.

    Returns:
        the classes in the order of their names; their split is ``""`` where the table has none.

    Raises:
        DataError: the table cannot be read, lacks a column, names a file that is missing or twice, or puts a class into two
            splits or groups; the line is named.
    """
    if path.exists() and not path.is_file():
        raise DataError(f"labels {path} is no regular file; it must be a CSV file in UTF-8")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"labels {path} cannot be read ({error}); it must be a CSV file in UTF-8") from error
    reader = csv.DictReader(io.StringIO(text, newline=""))
    columns = reader.fieldnames or []
    if not {"filename", "label"} <= set(columns):
        raise DataError(
            f"labels {path} has the columns {','.join(columns)}, but it needs filename,label; name them in its first line"
        )
    rows = _Rows(path, root, "split" in columns)
    for number, line in enumerate(reader, 2):
        rows.add(number, {column: (line.get(column) or "").strip() for column in COLUMNS})
    if not rows.entries:
        raise DataError(f"labels {path} lists no image; add lines")
    return [
        ListedClass(rows.traits[label][0], label, rows.entries[label], rows.traits[label][1])
        for label in sorted(rows.entries)
    ]


class _Rows:
    """The rows of a table so far: the images of each class, and the split and group that it is in."""

    def __init__(self, path: Path, root: Path, has_splits: bool) -> None:
        self.entries: dict[str, list[Entry]] = {}
        self.traits: dict[str, tuple[str, str]] = {}
        self._path, self._root, self._base, self._has_splits = path, root, root.resolve(), has_splits
        self._seen: set[Path] = set()

    def add(self, number: int, row: dict[str, str]) -> None:
        """Take a row.

        Raises:
            DataError: it lacks a value, names a file that is missing or there already, or contradicts an earlier row.
        """
        where = f"line {number} of {self._path}"
        name, label, split, group = (row[column] for column in COLUMNS)
        if not name or not label:
            raise DataError(f"{where} has no {'label' if name else 'filename'}; fill it in or remove the line")
        file = self._find_file(where, name)
        if self._has_splits and split not in SPLITS:
            raise DataError(f"{where} has the split {split!r}, but it must be one of {', '.join(SPLITS)}")
        known = self.traits.setdefault(label, (split, group))
        if known != (split, group):
            raise DataError(
                f"{where} puts class {label} into {'/'.join((split, group))}, but an earlier line into {'/'.join(known)}; "
                "a class belongs to one split and one group"
            )
        self.entries.setdefault(label, []).append(enter_file(file, name))

    def _find_file(self, where: str, name: str) -> Path:
        file = (self._base / name).resolve()
        if not file.is_relative_to(self._base):
            raise DataError(f"{where} names {name}, which lies outside of {self._root}; put the images below root")
        if not file.is_file():
            raise DataError(f"{where} names {name}, which is not in {self._root}; add the image or remove the line")
        if file in self._seen:
            raise DataError(f"{where} names {name} again, but an image has one class; remove one of the lines")
        self._seen.add(file)
        return file
