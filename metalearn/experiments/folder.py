"""The folder of a run, read as far as it can be, and the runs below a folder."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from metalearn.checks import find_nearest, quote_value
from metalearn.errors import ConfigError
from metalearn.experiments.record import FILE, Record, read_record
from metalearn.experiments.results import Result, find_result, read_last_row

__all__ = ["Run", "find_run", "find_runs"]

MOST = 100_000
"""Folders that are looked into."""


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        folder: where it lies.
        name: the folder, as it is named among others.
        record: what it says of itself; ``None`` where it keeps no record that can be read.

    Example:
        >>> from pathlib import Path
        >>> from metalearn.experiments.folder import Run
        >>> Run(Path("runs/mine/version_0"), "mine/version_0", record=None).state
        'unknown'
    """

    folder: Path
    name: str
    record: Record | None

    @property
    def configs(self) -> list[str]:
        """The configurations that it was begun with."""
        return self.record.first.configs if self.record is not None else []

    @property
    def changes(self) -> dict[str, str]:
        """Options beside the configurations, those of later trainings of the same run too."""
        if self.record is None:
            return {}
        sessions = [*self.record.earlier, self.record.session]
        return {name: value for session in sessions for name, value in session.changes.items()}

    @property
    def state(self) -> str:
        """``"finished"``, ``"running"``, ``"interrupted"``, ``"failed"`` or ``"unfinished"``; ``"unknown"`` without a record."""
        return self.record.session.state if self.record is not None else "unknown"

    @cached_property
    def result(self) -> Result | None:
        """What it has come to."""
        return find_result(self.folder, self.record)

    @cached_property
    def steps(self) -> int | None:
        """The outer steps that were done, those of the log where a run has not ended."""
        if self.record is not None and self.record.session.step is not None:
            return self.record.session.step
        row = read_last_row(self.folder / "metrics.csv", "train/loss")
        return int(row["step"]) + 1 if row is not None and row.get("step", "").isdigit() else None

    @property
    def seconds(self) -> float | None:
        """From start to end of all its trainings, tests after them included."""
        if self.record is None:
            return None
        spans = [_span(session.start, session.end) for session in [*self.record.earlier, self.record.session]]
        known = [span for span in spans if span is not None]
        return sum(known) if known else None

    @property
    def commit(self) -> str | None:
        """The commit of this package's checkout, shortened, with a ``*`` where files had changed; else the working folder's."""
        origin = self.record.session.origin if self.record is not None else {}
        for name in ("commit", "working_commit"):
            commit: Any = origin.get(name)
            if isinstance(commit, dict) and commit.get("hash"):
                return f"{str(commit['hash'])[:7]}{'*' if commit.get('dirty') else ''}"
        return None

    @property
    def begun(self) -> float:
        """When it began, in seconds, as far as that can be known; for sorting."""
        if self.record is not None:
            start = _moment(self.record.first.start)
            if start is not None:
                return start.timestamp()
        times = [path.stat().st_mtime for path in self.folder.glob("*") if path.is_file()]
        return min(times, default=0.0)

    def as_dict(self) -> dict[str, Any]:
        """A row of the table of runs, in plain types."""
        result, session = self.result, self.record.session if self.record is not None else None
        return {
            "run": self.name, "config": " ".join(self.configs),
            "changes": self.changes, "state": self.state, "steps": self.steps,
            "stage": result.stage if result else None, "measure": result.measure if result else None,
            "mean": result.mean if result else None, "ci95": result.ci95 if result else None,
            "tasks": result.tasks if result else None, "seconds": self.seconds, "commit": self.commit,
            "seed": session.seed if session else None, "start": self.record.first.start if self.record else None,
            "end": session.end if session else None, "error": session.error if session else None,
            "repeat": self.record.first.repeat if self.record else None, "folder": str(self.folder),
        }  # fmt: skip


def find_runs(root: Path) -> tuple[list[Run], int]:
    """The runs below a folder, the newest last, and how many folders look like runs and hold none.

    Links are not followed, and nothing is looked for inside of a run.

    Example:
        >>> from pathlib import Path
        >>> from metalearn.experiments.folder import find_runs
        >>> folder = Path("runs/mine/version_0")
        >>> (folder / "checkpoints").mkdir(parents=True)
        >>> _ = (folder / "config.yaml").write_text("")
        >>> [run.name for run in find_runs(Path("runs"))[0]]
        ['mine/version_0']
    """
    runs: list[Run] = []
    empty = 0
    for number, (where, folders, files) in enumerate(os.walk(root)):
        folder = Path(where)
        if is_run(folder, files, folders):
            runs.append(Run(folder, _name(folder, root), read_record(folder)))
            folders.clear()
        elif folder.name.startswith("version_") and folder != root:
            empty += 1
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if number >= MOST:
            break
    return sorted(runs, key=lambda run: (run.begun, run.name)), empty


def is_run(folder: Path, files: list[str], folders: list[str]) -> bool:
    """Whether a folder is one of a run: it has a record, or a configuration beside what a run writes."""
    if FILE in files and read_record(folder) is not None:
        return True
    return "config.yaml" in files and ("metrics.csv" in files or "checkpoints" in folders)


def find_run(name: str, root: Path = Path("runs")) -> Run:
    """The run that a name means.

    Args:
        name: a run's folder or a file in it; ``NAME/version_3`` below the root; or ``NAME``, for the newest run below that.
        root: where runs are.

    Raises:
        ConfigError: there is no such run; the line names the nearest ones.

    Example:
        >>> from metalearn import ConfigError
        >>> from metalearn.experiments.folder import find_run
        >>> try:
        ...     find_run("")
        ... except ConfigError as error:
        ...     print(error)
        run is '', but it must name a run; metalearn runs lists them
    """
    if not name.strip():
        raise ConfigError(f"run is {quote_value(name)}, but it must name a run; metalearn runs lists them")
    for path in (Path(name), root / name):
        try:
            exists = path.exists()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(
                f"run {quote_value(name)} is no path ({reason}); metalearn runs lists those there are"
            ) from error
        if not exists:
            continue
        for folder in (path, *path.parents[:2]):
            if folder.is_dir() and is_run(folder, *_list(folder)):
                return Run(folder, _name(folder, root), read_record(folder))
        runs = find_runs(path)[0] if path.is_dir() else []
        if runs:
            return Run(runs[-1].folder, _name(runs[-1].folder, root), runs[-1].record)
    known = [run.name for run in find_runs(root)[0]]
    groups = list(dict.fromkeys(str(Path(run).parent) for run in known))
    near = find_nearest(name, [*known, *groups], 2)
    remedy = f"did you mean {', '.join(near)}?" if near else f"metalearn runs lists those below {root}"
    raise ConfigError(
        f"run {quote_value(name)} is neither the folder of a run nor the name of one below {root}; {remedy}"
    )


def _list(folder: Path) -> tuple[list[str], list[str]]:
    entries = list(folder.iterdir())
    return [entry.name for entry in entries if entry.is_file()], [entry.name for entry in entries if entry.is_dir()]


def _name(folder: Path, root: Path) -> str:
    try:
        name = str(folder.relative_to(root))
    except ValueError:
        return str(folder)
    return name if name != "." else folder.resolve().name


def _moment(text: str | None) -> datetime | None:
    try:
        return datetime.fromisoformat(text) if text else None
    except ValueError:
        return None


def _span(start: str, end: str | None) -> float | None:
    begun, ended = _moment(start), _moment(end)
    if begun is None or ended is None or (begun.tzinfo is None) != (ended.tzinfo is None):
        return None
    return max((ended - begun).total_seconds(), 0.0)
