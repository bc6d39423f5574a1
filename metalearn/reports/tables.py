"""CSV files, written whole or not at all."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from metalearn.errors import DataError, suggest_space

__all__ = ["parse_number", "read_csv", "read_whole_rows", "write_atomically", "write_csv"]


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> Path:
    """Write a table.

    Raises:
        DataError: the folder cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return write_atomically(path, text.getvalue().encode(errors="backslashreplace"))


def write_atomically(path: Path, content: bytes) -> Path:
    """Write a file beside its place and move it there.

    Raises:
        DataError: the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):  # there is no such file where its folder is none
            temporary.unlink()
        raise DataError(
            f"{path} cannot be written ({error.strerror}); {suggest_space(error)}, or choose another folder"
        ) from error
    return path


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a table."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_whole_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a table that another process may be writing: the last line of a killed one may not be whole.

    Raises:
        OSError: the file cannot be read.
    """
    text = path.read_text(errors="replace")
    rows = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1]))
    return [row for row in rows if None not in row and None not in row.values()]


def parse_number(text: object) -> float:
    """The number that a cell holds; nan where it holds none.

    Example:
        >>> from metalearn.reports.tables import parse_number
        >>> parse_number("0.5"), parse_number("")
        (0.5, nan)
    """
    try:
        return float(str(text))
    except ValueError:
        return math.nan
