"""Runs beside each other: the paired difference on the same test tasks, and in what their configurations differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from metalearn.errors import ConfigError
from metalearn.experiments.folder import Run
from metalearn.experiments.options import flatten_options
from metalearn.experiments.record import Session
from metalearn.experiments.results import read_task_values
from metalearn.experiments.student import Spread, spread

__all__ = ["Difference", "Scores", "compare_pairs", "list_changes", "read_scores"]

MAKE_NO_TASK = (
    "train_tasks",
    "val_tasks",
    "test_tasks",
    "tasks_per_batch",
    "train_seed",
    "num_workers",
    "cache_dir",
    "download",
)
"""Arguments of the data that change no test task."""
PLACES = ("run_name", "ckpt_path", "trainer.default_root_dir")
"""Options that say where a run writes, in which all runs differ."""


@dataclass(frozen=True)
class Scores:
    """What runs have scored on the test tasks that they share.

    Attributes:
        measure: ``"accuracy"``, as shares, or ``"loss"``.
        tasks: the numbers of the tasks.
        values: for each run its value on each of these tasks.

    Example:
        >>> from metalearn.experiments.comparison import Scores
        >>> scores = Scores("accuracy", tasks=[0, 1], values=[[0.5, 0.7], [0.6, 0.8]])
        >>> len(scores.values)
        2
    """

    measure: str
    tasks: list[int]
    values: list[list[float]]


@dataclass(frozen=True)
class Difference:
    """How a run differs from the first one.

    Attributes:
        spread: of the differences over tasks, with the 95 % interval of their mean.
        higher: on how many tasks its value is higher.
        lower: on how many it is lower.

    Example:
        >>> from metalearn.experiments.comparison import compare_pairs
        >>> difference = compare_pairs([0.5, 0.7, 0.6], [0.75, 0.7, 0.5])
        >>> difference.higher, difference.lower
        (1, 1)
    """

    spread: Spread
    higher: int
    lower: int


def compare_pairs(first: Sequence[float], other: Sequence[float]) -> Difference:
    """The paired difference ``other - first`` over tasks.

    ``mean(d) ± t * s / sqrt(T)`` with ``d_i = other_i - first_i``, ``s`` the standard deviation of the differences and ``t`` the
    97.5 % quantile of Student's t with ``T - 1`` degrees of freedom (the paired t test; Student 1908). What makes a task hard for
    both runs falls out of the differences, so that the interval is mostly narrower than those of the two means.

    Example:
        >>> from metalearn.experiments.comparison import compare_pairs
        >>> compare_pairs([0.5, 0.7, 0.6], [0.6, 0.8, 0.8]).higher
        3
    """
    differences = [after - before for before, after in zip(first, other, strict=True)]
    return Difference(
        spread(differences), sum(value > 0 for value in differences), sum(value < 0 for value in differences)
    )


def read_scores(runs: Sequence[Run], configs: Sequence[Mapping[str, Any]]) -> Scores | None:
    """What all runs have scored, on the tasks that all were tested on; ``None`` where no run has a table of tasks.

    Raises:
        ConfigError: some have none, or they were tested by other measures or on other tasks; the line says what differs.
    """
    has_table = [(run.folder / "test_tasks.csv").is_file() for run in runs]
    if not any(has_table):
        return None
    if not all(has_table):
        lacking = runs[has_table.index(False)].name
        raise ConfigError(f"run {lacking} has no test_tasks.csv to compare by; test it with: metalearn test --ckpt_path "
                          f"{runs[has_table.index(False)].folder}/checkpoints/best.ckpt")  # fmt: skip
    tables = []
    for run in runs:
        try:
            tables.append(read_task_values(run.folder))
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(
                f"the test_tasks.csv of run {run.name} cannot be read ({error}); test it again"
            ) from error
    for run, (measure, _) in zip(runs, tables, strict=True):
        if measure != tables[0][0]:
            raise ConfigError(
                f"run {runs[0].name} was tested by {tables[0][0]}, and {run.name} by {measure}; compare runs of one measure"
            )
    for run, config in zip(runs[1:], configs[1:], strict=True):
        _check_tasks(runs[0], run, configs[0], config)
    shared = sorted(set.intersection(*(set(values) for _, values in tables)))
    if not shared:
        raise ConfigError("the runs have no test task in common; test them on the same tasks")
    return Scores(tables[0][0], shared, [[values[task] for task in shared] for _, values in tables])


def list_changes(configs: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """The options in which configurations differ, each with its value in every one of them."""
    flat = [
        {name: "null" if value is None else str(value) for name, value in flatten_options(config).items()}
        for config in configs
    ]
    names = dict.fromkeys(name for options in flat for name in options)
    rows = [(name, [options.get(name, "-") for options in flat]) for name in names if name not in PLACES]
    return [(name, values) for name, values in rows if len(set(values)) > 1]


def _check_tasks(first: Run, other: Run, config: Mapping[str, Any], other_config: Mapping[str, Any]) -> None:
    """Raise unless both were tested on the same list of tasks."""
    sums = [find_test_tasks(first), find_test_tasks(other)]
    changes = list_changes([{"data": options.get("data")} for options in (config, other_config)])
    differing = [(name, values) for name, values in changes if name.rpartition(".")[2] not in MAKE_NO_TASK]
    is_known = bool(sums[0] and sums[1])
    if is_known and all(left == right for left, right in zip(*sums, strict=False)):
        return
    if not is_known and not differing:
        return
    if differing:
        name, values = differing[0]
        what = f"{name} is {values[0]} in {first.name} and {values[1]} in {other.name}"
    else:
        what = f"{first.name} and {other.name} have the same options of data, but not the same data"
    raise ConfigError(f"the runs were tested on different tasks: {what}; test them on the same tasks to compare them")


def find_test_tasks(run: Run) -> list[str]:
    """The checksums of the tasks that a run was tested on last; none where they are not known."""
    record = run.record
    sessions: list[Session] = [] if record is None else [*reversed(record.evaluations), record.session]
    return next((session.test_tasks for session in sessions if session.test_tasks), [])
