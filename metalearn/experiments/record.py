"""``run.json``: what a run's folder says about how the run came about, how it ended, and what came out of it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from metalearn.experiments.origin import describe_origin, describe_process, is_alive
from metalearn.reports.summary import as_plain
from metalearn.reports.tables import write_atomically

__all__ = ["FILE", "Record", "Session", "begin_session", "read_record", "write_record"]

FILE = "run.json"
LARGEST = 4 << 20
"""Bytes; far above any record."""
STATES = ("running", "finished", "interrupted", "failed")


@dataclass(frozen=True)
class Session:
    """One command that has worked on a run.

    Attributes:
        command: the subcommand, such as ``"fit"``.
        arguments: what followed ``python -m metalearn``.
        configs: the configurations, as they were named.
        changes: the options that were set beside them, as they were written.
        seed: ``seed_everything``.
        start: when it began, in UTC, as ISO 8601.
        end: when it ended; ``None`` before.
        status: ``"running"``, ``"finished"``, ``"interrupted"`` or ``"failed"``, as it was written last.
        error: the line that says why it failed.
        step: the outer step that it came to.
        summary: what came out of it.
        test_tasks: a checksum of each of the first tasks that it was tested on.
        origin: working folder, versions, commits, machine and environment.
        process: which process it is, to see whether it runs.

    Example:
        >>> from metalearn.experiments.record import Session
        >>> session = Session("fit", ["fit", "--config", "mine.yaml"]).finish("finished", step=100)
        >>> session.status, session.repeat
        ('finished', 'python -m metalearn fit --config mine.yaml')
    """

    command: str = ""
    arguments: list[str] = field(default_factory=list)
    configs: list[str] = field(default_factory=list)
    changes: dict[str, str] = field(default_factory=dict)
    seed: int | None = None
    start: str = ""
    end: str | None = None
    status: str = "running"
    error: str | None = None
    step: int | None = None
    summary: dict[str, Any] | None = None
    test_tasks: list[str] = field(default_factory=list)
    origin: dict[str, Any] = field(default_factory=dict)
    process: dict[str, Any] = field(default_factory=dict)

    @property
    def state(self) -> str:
        """The status; ``"unfinished"`` where nothing was written at the end, and the process is not seen to run."""
        return "unfinished" if self.status == "running" and not is_alive(self.process) else self.status

    @property
    def repeat(self) -> str:
        """The command, as a shell takes it."""
        return shlex.join(["python", "-m", "metalearn", *self.arguments])

    def as_dict(self) -> dict[str, Any]:
        """As ``run.json`` holds it, with the command that repeats it."""
        return {"repeat": self.repeat, **asdict(self)}

    def finish(self, status: str, **values: Any) -> Session:
        """The session as it ends now.

        Args:
            status: how.
            values: of ``step``, ``summary``, ``test_tasks`` and ``error``.
        """
        return replace(self, end=now(), status=status, **values)


@dataclass(frozen=True)
class Record:
    """All sessions of a run.

    Attributes:
        name: of the run.
        session: the newest training; in a folder without one, what has run there.
        earlier: trainings that it has gone on from, the first one first.
        evaluations: tests, validations and predictions of its checkpoints since, in their order.

    Example:
        >>> from metalearn.experiments.record import Record, Session
        >>> record = Record("mine", Session("fit", start="2026-01-01T10:00:00+00:00"))
        >>> record = record.add(Session("test", start="2026-01-01T11:00:00+00:00"))
        >>> record.session.command, [session.command for session in record.evaluations]
        ('fit', ['test'])
    """

    name: str
    session: Session
    earlier: list[Session] = field(default_factory=list)
    evaluations: list[Session] = field(default_factory=list)

    @property
    def first(self) -> Session:
        """The session that has begun the run."""
        return self.earlier[0] if self.earlier else self.session

    def add(self, session: Session) -> Record:
        """The record with a session that begins."""
        if session.command == "fit":
            before = [self.session] if self.session.command == "fit" else []
            return replace(self, session=session, earlier=[*self.earlier, *before])
        return replace(self, evaluations=[*self.evaluations, session])

    def update(self, session: Session) -> Record:
        """The record with a session in the place of what it was when it began."""
        if is_same(session, self.session):
            return replace(self, session=session)
        later = [session if is_same(session, other) else other for other in self.evaluations]
        return replace(self, evaluations=later)

    def as_dict(self) -> dict[str, Any]:
        """As ``run.json`` holds it: the newest training's fields at the top."""
        return {"schema": 1, "name": self.name, **self.session.as_dict(),
                "earlier": [session.as_dict() for session in self.earlier],
                "evaluations": [session.as_dict() for session in self.evaluations]}  # fmt: skip


def begin_session(
    arguments: Sequence[str], command: str, configs: Sequence[str], changes: dict[str, str], seed: int | None,
    gpus: Sequence[str] = (), threads: int | None = None,
) -> Session:  # fmt: skip
    """A session that begins now, in this process and on this machine.

    Args:
        arguments: what follows ``python -m metalearn``.
        command: the subcommand.
        configs: the configurations, as they were named.
        changes: the options beside them.
        seed: ``seed_everything``.
        gpus: the names of the GPUs that it uses.
        threads: of torch.
    """
    origin = describe_origin()
    origin["machine"] |= {"gpus": list(gpus), "threads": threads}
    return Session(
        command=command, arguments=list(arguments), configs=list(configs), changes=changes, seed=seed, start=now(),
        origin=origin, process=describe_process(),
    )  # fmt: skip


def now() -> str:
    """This moment, in UTC."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def is_same(session: Session, other: Session) -> bool:
    """Whether two are one session, at different times."""
    return (session.start, session.process) == (other.start, other.process)


def write_record(folder: Path, record: Record) -> Path:
    """Write ``run.json``, whole.

    Raises:
        DataError: the folder cannot be written.
    """
    text = json.dumps(as_plain(record.as_dict()), indent=2, ensure_ascii=True, allow_nan=False)
    return write_atomically(folder / FILE, f"{text}\n".encode())


def read_record(folder: Path) -> Record | None:
    """The record in a run's folder; ``None`` where there is none, or none that can be read."""
    path = folder / FILE
    try:
        if not path.is_file() or path.stat().st_size > LARGEST:
            return None
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or not isinstance(content.get("command"), str):
        return None
    name = content.get("name")
    return Record(
        name=name if isinstance(name, str) else folder.parent.name,
        session=_read_session(content),
        earlier=_read_sessions(content.get("earlier")),
        evaluations=_read_sessions(content.get("evaluations")),
    )


def _read_sessions(values: Any) -> list[Session]:
    return [_read_session(value) for value in values if isinstance(value, dict)] if isinstance(values, list) else []


def _read_session(content: dict[str, Any]) -> Session:
    """The fields that are of their types; what is not is left at its default."""
    kinds: dict[str, Any] = {
        "command": str, "arguments": list, "configs": list, "changes": dict, "seed": int, "start": str, "end": str,
        "status": str, "error": str, "step": int, "summary": dict, "test_tasks": list, "origin": dict, "process": dict,
    }  # fmt: skip
    values = {each.name: content[each.name] for each in fields(Session)
              if isinstance(content.get(each.name), kinds[each.name])}  # fmt: skip
    for name in ("arguments", "configs", "test_tasks"):
        values[name] = [str(entry) for entry in values.get(name, [])]
    values["changes"] = {str(option): str(value) for option, value in values.get("changes", {}).items()}
    if values.get("status") not in STATES:
        values["status"] = "failed" if values.get("end") else "running"
    return Session(**values)
