"""What a test says of each class: how often it was recognised, and what it was taken for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from metalearn.reports.tables import write_csv

__all__ = ["ClassTable", "Confusion", "bound_share", "write_labels"]

Z = 1.96


class Confusion(NamedTuple):
    """Queries of a class that were taken for another one.

    Attributes:
        true: the number of their class.
        taken: the number of the other one.
        confused: how many.
        chances: the queries of the class in tasks that have both.
    """

    true: int
    taken: int
    confused: int
    chances: int


@dataclass(frozen=True)
class ClassTable:
    """How the queries of each class were classified, over tasks that share classes.

    Attributes:
        names: of the classes.
        tasks: in how many tasks each was, ``[C]``.
        queries: how many of its queries were asked, ``[C]``.
        right: how many were recognised, ``[C]``.
        taken: how many queries were taken for it, ``[C]``.
        confusions: classes that were taken for others.
        met: the queries of a class in the tasks that have another one too, by the numbers of both.

    Example:
        >>> import numpy as np
        >>> from metalearn.reports.class_table import ClassTable
        >>> rows = np.array([[0, 0, 0, 4], [0, 0, 1, 1], [0, 1, 1, 5]])  # task, class, predicted class, queries
        >>> table = ClassTable.of(rows, {0: ["lion", "tiger"]})
        >>> [line[:4] for line in table.lines()]
        [['lion', 1, 5, 0.8], ['tiger', 1, 5, 1.0]]
    """

    names: list[str]
    tasks: np.ndarray
    queries: np.ndarray
    right: np.ndarray
    taken: np.ndarray
    confusions: list[Confusion]
    met: Mapping[tuple[int, int], int]

    @classmethod
    def of(cls, rows: np.ndarray, classes: Mapping[int, Sequence[str]]) -> ClassTable:
        """Count.

        Args:
            rows: a task's number, the label of a class, the label that its queries were taken for, and how many; ``[R, 4]``.
            classes: the names of the labels of each of these tasks.
        """
        names = sorted({name for of_task in classes.values() for name in of_task})
        numbers = {name: number for number, name in enumerate(names)}
        order = {task: place for place, task in enumerate(classes)}
        ways = np.full((len(order), max(map(len, classes.values()), default=0)), -1)
        for task, of_task in classes.items():
            ways[order[task], : len(of_task)] = [numbers[name] for name in of_task]
        place = np.asarray([order[task] for task in rows[:, 0].tolist()], np.int64)
        true, taken, counts = ways[place, rows[:, 1]], ways[place, rows[:, 2]], rows[:, 3]
        size = len(names)
        right = np.bincount(true[true == taken], counts[true == taken], size).astype(int)
        met = _count_pairs(np.repeat(true, ways.shape[1]), ways[place].ravel(), np.repeat(counts, ways.shape[1]), size)
        wrong = true != taken
        pairs = _count_pairs(true[wrong], taken[wrong], counts[wrong], size)
        return cls(
            names,
            np.bincount(ways[ways >= 0], minlength=size),
            np.bincount(true, counts, size).astype(int),
            right,
            np.bincount(taken, counts, size).astype(int),
            [Confusion(*pair, count, met[pair]) for pair, count in pairs.items()],
            met,
        )

    def rank_confusions(self) -> list[Confusion]:
        """The confusions, those first whose share of queries is largest for sure: by its lower 95 % bound."""
        return sorted(self.confusions, key=_by_sureness)

    def pair_up(self) -> list[Confusion]:
        """The confusions of two classes in both directions together, ranked alike."""
        counts: dict[tuple[int, int], int] = {}
        for pair in self.confusions:
            key = min(pair.true, pair.taken), max(pair.true, pair.taken)
            counts[key] = counts.get(key, 0) + pair.confused
        both = [
            Confusion(*key, count, self.met.get(key, 0) + self.met.get(key[::-1], 0)) for key, count in counts.items()
        ]
        return sorted(both, key=_by_sureness)

    def lines(self) -> list[list[Any]]:
        """A line for each class under :data:`HEADER`, the worst recognised first."""
        worst: dict[int, Confusion] = {}
        for pair in self.rank_confusions():
            worst.setdefault(pair.true, pair)
        lines = [self._describe(number, worst.get(number)) for number in np.flatnonzero(self.queries).tolist()]
        return sorted(lines, key=lambda line: (line[3], line[0]))

    def write(self, path: Path) -> Path:
        """Write ``classes.csv``."""
        return write_csv(path, HEADER, self.lines())

    def shares(self) -> np.ndarray:
        """The share of queries of each class that were taken for each class, ``[C, C]``, in tasks with both; nan without such."""
        shares = np.full((len(self.names), len(self.names)), np.nan)
        for (true, taken), chances in self.met.items():
            shares[true, taken] = 0.0 if chances else np.nan
        for pair in self.confusions:
            shares[pair.true, pair.taken] = pair.confused / pair.chances
        asked = self.queries > 0
        shares[asked, asked] = self.right[asked] / self.queries[asked]
        return shares

    def _describe(self, number: int, worst: Confusion | None) -> list[Any]:
        right, queries, taken = (int(values[number]) for values in (self.right, self.queries, self.taken))
        precision = right / taken if taken else ""
        end = ["", ""] if worst is None else [self.names[worst.taken], worst.confused / worst.chances]
        return [
            self.names[number], int(self.tasks[number]), queries, right / queries, precision, 2 * right / (queries + taken), *end
        ]  # fmt: skip


HEADER = ("class", "tasks", "queries", "accuracy", "precision", "f1", "taken_for", "taken_for_share")


def bound_share(count: int, chances: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927).

    Example:
        >>> from metalearn.reports.class_table import bound_share
        >>> [round(bound, 3) for bound in bound_share(1, 10)]
        [0.018, 0.404]
    """
    share, part = count / chances, Z * Z / chances
    middle, half = share + part / 2, Z * ((share * (1 - share) + part / 4) / chances) ** 0.5
    return (middle - half) / (1 + part), (middle + half) / (1 + part)


def _by_sureness(pair: Confusion) -> tuple[float, Confusion]:
    return -bound_share(pair.confused, pair.chances)[0], pair


def write_labels(path: Path, rows: np.ndarray) -> Path:
    """Write ``labels.csv``: for tasks with several labels an example, how each label was predicted.

    Args:
        path: of the file.
        rows: a label's number, and its right, missed, wrong and rightly absent predictions; ``[R, 5]``.
    """
    lines: list[list[Any]] = []
    for label in np.unique(rows[:, 0]).tolist():
        right, missed, wrong, absent = rows[rows[:, 0] == label, 1:].sum(0).tolist()
        recall = right / (right + missed) if right + missed else ""
        precision = right / (right + wrong) if right + wrong else ""
        f1 = 2 * right / (2 * right + missed + wrong) if right + missed + wrong else ""
        accuracy = (right + absent) / (right + missed + wrong + absent)
        lines.append([label, right + missed + wrong + absent, right + missed, accuracy, recall, precision, f1])
    return write_csv(path, ("label", "queries", "with_label", "accuracy", "recall", "precision", "f1"), lines)


def _count_pairs(first: np.ndarray, second: np.ndarray, counts: np.ndarray, size: int) -> dict[tuple[int, int], int]:
    """The sum of the counts of each pair of numbers; a negative number is none."""
    kept = second >= 0
    keys, where = np.unique(first[kept] * size + second[kept], return_inverse=True)
    sums = np.bincount(where, counts[kept], len(keys)).astype(int)
    return {(key // size, key % size): count for key, count in zip(keys.tolist(), sums.tolist(), strict=True)}
