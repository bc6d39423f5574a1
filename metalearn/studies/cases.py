"""The cases of a study, each a run of its own in a file of its own: they run side by side, and a stopped study goes on."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from metalearn.checks import check_whole
from metalearn.errors import MetalearnError
from metalearn.experiments.board import Board
from metalearn.experiments.parallel import Ended, Job, Processes, Progress
from metalearn.experiments.plan import claim
from metalearn.progress import Progress as Bar
from metalearn.reports.tables import write_atomically
from metalearn.studies.results import run_named, say_execution_once

__all__ = ["Case", "Report", "Row", "run_case", "run_cases"]

Row = dict[str, Any]
"""One line of a study's table: what it is of, and its numbers."""
Report = Callable[[float], None]
"""Says how much of a case is done, from 0 to 1."""
EVERY = 1.0
"""Seconds between two notes of how much is done."""


@dataclass(frozen=True)
class Case:
    """One run of a study.

    Attributes:
        name: its own among the cases of a study; its file is called so.
        function: ``"file:function"`` in ``metalearn.studies``. It takes the arguments and ``report``, and returns rows.
        arguments: of JSON types.
    """

    name: str
    function: str
    arguments: Mapping[str, Any]

    def command(self, folder: Path) -> list[str]:
        """The process that runs it."""
        words = [self.function, json.dumps(self.arguments), str(self.path(folder)), str(torch.get_num_threads())]
        return [sys.executable, "-m", "metalearn.studies.work", *words]

    def path(self, folder: Path) -> Path:
        """Where its rows are kept."""
        return folder / "cases" / self.name / "rows.json"

    def read(self, folder: Path) -> list[Row] | None:
        """Its rows, once it has run to its end."""
        try:
            rows: list[Row] = json.loads(self.path(folder).read_text())
        except (OSError, ValueError):
            return None
        return rows


def run_cases(folder: Path, study: str, options: Mapping[str, Any], cases: Sequence[Case], processes: int) -> list[Row]:
    """Run the cases that have not run yet, and return the rows of all in their order.

    Args:
        folder: of the study.
        study: its name.
        options: what the rows of every case depend on; in a folder with others the study does not go on.
        cases: all of them.
        processes: how many run at a time; 1 for this process alone.

    Raises:
        ConfigError: the folder holds something else, or there are fewer cores.
        MetalearnError: a case has failed.
    """
    check_whole("processes", processes, 1, remedy="use 1")
    with claim(folder, f"study {study}", options):
        waiting = [case for case in cases if case.read(folder) is None]
        if processes == 1:
            _run_here(folder, study, waiting)
        elif waiting:
            _run_beside(folder, study, waiting, len(cases), processes)
    return [row for case in cases for row in case.read(folder) or []]


def run_case(function: str, arguments: Mapping[str, Any], path: Path, report: Report) -> None:
    """Run one case, and write its rows when it is done."""
    module, _, name = function.partition(":")
    rows = getattr(import_module(f"metalearn.studies.{module}"), name)(**arguments, report=report)
    write_atomically(path, json.dumps(rows).encode())


def _run_here(folder: Path, study: str, cases: Sequence[Case]) -> None:
    with say_execution_once(), Bar(f"study {study}", len(cases)) as bar:
        for case in cases:
            bar.describe(f"study {study}, {case.name}")
            shares = [0.0]

            def advance(share: float, shares: list[float] = shares) -> None:
                bar.advance(share - shares[-1])
                shares.append(share)

            with run_named(case.name):
                run_case(case.function, case.arguments, case.path(folder), advance)
            advance(1.0)


def _run_beside(folder: Path, study: str, cases: Sequence[Case], total: int, processes: int) -> None:
    board = Board(f"study {study}", total, total - len(cases))
    failures = Processes(processes, board).run(_list_jobs(folder, cases), _describe)
    if failures:
        raise MetalearnError(
            f"{failures} of {len(cases)} runs failed; mend what their output.log in {folder / 'cases'} says, and repeat the "
            "command: it runs what is missing"
        )


def _list_jobs(folder: Path, cases: Sequence[Case]) -> Iterator[Job]:
    for case in cases:
        path = case.path(folder)
        yield Job(case.name, case.command(folder), path.parent, ShareFile(path.with_name("share")).look, saves=False)


def _describe(ended: Ended) -> str:
    return f"{ended.job.name}: {'stopped' if ended.stopped else f'{ended.seconds:.0f} s'}"


class ShareFile:
    """A file by which a process says how much it has done, to the one that has started it.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._last = -EVERY

    def note(self, share: float) -> None:
        """Write how much is done, now and then."""
        if time.monotonic() - self._last >= EVERY:
            self._last = time.monotonic()
            write_atomically(self.path, f"{share:.4f}".encode())

    def look(self) -> Progress:
        """Where the process stands."""
        share = 0.0
        with suppress(OSError, ValueError):
            share = float(self.path.read_text())
        return Progress(share, 1.0, f"{100 * share:.0f} % done" if share else "starting")

    def remove(self) -> None:
        """Remove the file, if there is one."""
        self.path.unlink(missing_ok=True)
