"""CSV tables of image files and their classes, as people write them."""

from __future__ import annotations

import csv
import io
from collections import Counter
from pathlib import Path

from metalearn.datamodules.sources.listing import SPLITS, Entry, ListedClass, enter_file
from metalearn.errors import DataError

__all__ = ["read_label_table"]


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
    base = root.resolve()
    entries: dict[str, list[Entry]] = {}
    traits: dict[str, tuple[str, str]] = {}
    seen: Counter[Path] = Counter()
    for number, line in enumerate(reader, 2):
        where = f"line {number} of {path}"
        name, label = (line.get("filename") or "").strip(), (line.get("label") or "").strip()
        if not name or not label:
            raise DataError(f"{where} has no {'label' if name else 'filename'}; fill it in or remove the line")
        file = (base / name).resolve()
        if not file.is_relative_to(base):
            raise DataError(f"{where} names {name}, which lies outside of {root}; put the images below root")
        if not file.is_file():
            raise DataError(f"{where} names {name}, which is not in {root}; add the image or remove the line")
        seen[file] += 1
        if seen[file] > 1:
            raise DataError(f"{where} names {name} again, but an image has one class; remove one of the lines")
        split, group = (line.get("split") or "").strip(), (line.get("group") or "").strip()
        if "split" in columns and split not in SPLITS:
            raise DataError(f"{where} has the split {split!r}, but it must be one of {', '.join(SPLITS)}")
        known = traits.setdefault(label, (split, group))
        if known != (split, group):
            raise DataError(
                f"{where} puts class {label} into {'/'.join((split, group))}, but an earlier line into {'/'.join(known)}; "
                "a class belongs to one split and one group"
            )
        entries.setdefault(label, []).append(enter_file(file, name))
    if not entries:
        raise DataError(f"labels {path} lists no image; add lines")
    return [ListedClass(traits[label][0], label, entries[label], traits[label][1]) for label in sorted(entries)]
