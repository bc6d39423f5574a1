"""Tables of tasks: which image plays which part in which task, so that any system can be measured on the very same ones."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Protocol

import numpy as np

from metalearn.datamodules.episodes.options import EpisodeOptions
from metalearn.datamodules.episodes.pool import Pool
from metalearn.datamodules.episodes.sampling import TaskRows
from metalearn.errors import ConfigError, DataError

__all__ = ["HEADER", "list_task_lines", "name_classes", "read_tasks"]

HEADER = ("task", "role", "label", "class", "image")
ROLES = ("support", "query", "unlabeled")
ExampleNames = Callable[[int], list[str] | None]


class TaskSource(Protocol):
    """What a table of tasks is written from: a data module whose examples have classes."""

    seed: int
    options: EpisodeOptions

    @property
    def pool(self) -> Pool:
        """The examples that there are."""

    def task_rows(self, seed: int, split: str, index: int) -> TaskRows:
        """The numbers of the examples of a task, and their labels."""

    def example_names(self, number: int) -> list[str] | None:
        """The names of the examples of a class."""


def list_task_lines(data: TaskSource, split: str, count: int) -> Iterator[tuple[int, str, int, str, str]]:
    """The lines of the table of the first ``count`` tasks of a split, under :data:`HEADER`.

    ``label`` is the class's number in the task, ``class`` its name, ``image`` the name of the example within its class, or its
    number from 0 where examples have no names.

    Raises:
        ConfigError: images are turned in this split, which the table cannot say.
    """
    if split == "train" and data.options.rotations:
        raise ConfigError(
            "options.rotations is true, but a table of tasks names images as they are; write it without rotations"
        )
    pool = data.pool
    owners = np.repeat(np.arange(len(pool.counts)), pool.counts)
    for task in range(count):
        rows = data.task_rows(data.seed, split, task)
        for part, role in enumerate(ROLES):
            for row, label in zip(rows[2 * part], rows[2 * part + 1], strict=True):
                number = int(owners[row])
                names = data.example_names(number)
                place = int(row - pool.offsets[number])
                yield task, role, int(label), pool.names[number], str(place) if names is None else names[place]


def name_classes(data: TaskSource, split: str, index: int) -> list[str]:
    """The names of the classes of a task in the order of their labels."""
    rows, pool = data.task_rows(data.seed, split, index), data.pool
    owners = np.searchsorted(pool.offsets, rows.support, side="right") - 1
    names = dict(zip(rows.support_y.tolist(), owners.tolist(), strict=True))
    return [pool.names[names[label]] for label in sorted(names)]


def read_tasks(path: str, pool: Pool, splits: dict[str, np.ndarray], example_names: ExampleNames) -> list[TaskRows]:
    """Read a table of tasks back.

    Args:
        path: a CSV file under :data:`HEADER`.
        pool: the examples that there are.
        splits: the classes of each split.
        example_names: the names of the examples of a class.

    Raises:
        DataError: the table cannot be read, names what is not there or a training class, repeats an example within a task, or
            has a task without support or query; the line is named.
    """
    if Path(path).exists() and not Path(path).is_file():
        raise DataError(f"test_tasks_file {path} is no regular file; write one with python -m metalearn data tasks")
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"test_tasks_file {path} cannot be read ({error}); write one with python -m metalearn data tasks"
        ) from error
    reader = csv.DictReader(io.StringIO(text, newline=""))
    if tuple(reader.fieldnames or ()) != HEADER:
        raise DataError(
            f"test_tasks_file {path} has the columns {','.join(reader.fieldnames or ())}, but they must be {','.join(HEADER)}; "
            "write one with python -m metalearn data tasks"
        )
    finder = _Finder(path, pool, set(splits["train"].tolist()), example_names)
    parsed = [finder.parse(number, line) for number, line in enumerate(reader, 2)]
    if not parsed:
        raise DataError(f"test_tasks_file {path} lists no task; write one with python -m metalearn data tasks")
    return [
        _build_task(path, task, [line[1:] for line in lines]) for task, lines in groupby(parsed, lambda line: line[0])
    ]


def _build_task(path: str, task: str, lines: list[tuple[str, int, int]]) -> TaskRows:
    rows = [row for _, _, row in lines]
    if len(set(rows)) < len(rows):
        raise DataError(
            f"task {task} of {path} names an image twice, but support, query and unlabeled must be disjoint; write the "
            "table again"
        )
    parts: list[np.ndarray] = []
    for role in ROLES:
        chosen = [(row, label) for part, label, row in lines if part == role]
        if not chosen and role != "unlabeled":
            raise DataError(f"task {task} of {path} has no {role} image, but it needs one; write the table again")
        parts += [
            np.asarray([row for row, _ in chosen], np.int64),
            np.asarray([label for _, label in chosen], np.int64),
        ]
    labels = set(parts[1].tolist())
    if labels != set(range(len(labels))) or not set(parts[3].tolist()) <= labels:
        raise DataError(
            f"task {task} of {path} has the support labels {sorted(labels)}, but they must be 0, 1, ... and contain the query's; "
            "write the table again"
        )
    return TaskRows(*parts)


class _Finder:
    """Finds the number of an example by its class and name."""

    def __init__(self, path: str, pool: Pool, trains: set[int], example_names: ExampleNames) -> None:
        self.path, self.pool, self.trains, self.example_names = path, pool, trains, example_names
        self.numbers = {name: number for number, name in enumerate(pool.names)}
        self.places: dict[int, dict[str, int]] = {}

    def parse(self, number: int, line: dict[str, str]) -> tuple[str, str, int, int]:
        """Task, role, label, and the number of the example."""
        where = f"line {number} of {self.path}"
        if line["role"] not in ROLES:
            raise DataError(f"{where} has the role {line['role']!r}, but it must be one of {', '.join(ROLES)}")
        try:
            label = int(line["label"])
        except (TypeError, ValueError) as error:
            raise DataError(f"{where} has the label {line['label']!r}, but it must be a whole number") from error
        owner = self.numbers.get(line["class"])
        if owner is None:
            raise DataError(
                f"{where} names class {line['class']}, which this data set lacks; set data.root to the right one"
            )
        if owner in self.trains:
            raise DataError(f"{where} names class {line['class']}, which is trained on; a test task must not use it")
        if owner not in self.places:
            names = self.example_names(owner) or [str(place) for place in range(int(self.pool.counts[owner]))]
            self.places[owner] = {name: place for place, name in enumerate(names)}
        place = self.places[owner].get(line["image"])
        if place is None:
            raise DataError(
                f"{where} names image {line['image']}, which class {line['class']} lacks; set data.root to the right one"
            )
        return line["task"], line["role"], label, int(self.pool.offsets[owner]) + place
