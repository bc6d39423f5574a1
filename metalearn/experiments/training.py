"""One training of an experiment: the command that runs it or goes on with it, how far it is, and what it has measured."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from metalearn.experiments.parallel import Ended, Job, Progress
from metalearn.reports.tables import parse_number, read_whole_rows, write_atomically

__all__ = ["Training", "format_measure"]

STATE = "state.json"


@dataclass
class Training:
    """``fit`` with some options, in a folder of its own.

    Attributes:
        name: what it is called where it is shown.
        home: its folder; the run is in ``version_0`` in it, or a later one where that was lost.
        options: of ``fit``.
        monitor: the validation measure, such as ``"val/acc"``.
        max_steps: the outer steps that it has to do; ``None`` where another condition ends it.

    Example:
        >>> from pathlib import Path
        >>> from metalearn.experiments.training import Training
        >>> training = Training("mine", Path("runs/mine"), ["--config", "mine.yaml"], "val/acc", max_steps=100)
        >>> training.finished, training.seconds
        (False, 0.0)
    """

    name: str
    home: Path
    options: Sequence[str]
    monitor: str
    max_steps: int | None
    _rows: list[dict[str, float]] = field(default_factory=list, repr=False)
    _stamp: tuple[Any, ...] = ()

    @property
    def finished(self) -> bool:
        """Whether it has ended well."""
        return self._state().get("status") == "finished"

    @property
    def seconds(self) -> float:
        """How long it has taken until now, in all processes that have worked on it."""
        return float(self._state().get("seconds", 0.0))

    @property
    def run(self) -> Path | None:
        """The folder of its run, once there is one."""
        versions = [path for path in self.home.glob("version_*") if path.name[8:].isdigit()]
        return max(versions, key=lambda path: int(path.name[8:]), default=None)

    @property
    def checkpoint(self) -> Path | None:
        """The checkpoint that its validation has chosen; its last state where none has."""
        paths = [self.run / "checkpoints" / name for name in ("best.ckpt", "last.ckpt")] if self.run else []
        return next((path for path in paths if path.is_file()), None)

    def job(self) -> Job:
        """What runs it, or goes on from its last checkpoint where there is one."""
        place = [f"--trainer.default_root_dir={self.home.parent}", f"--run_name={self.home.name}"]
        again = ["--ckpt_path=last"] if any(self.home.glob("version_*/checkpoints/last.ckpt")) else []
        command = [sys.executable, "-m", "metalearn", "fit", *self.options, *place, *again]
        return Job(self.name, command, self.home, self.look)

    def look(self) -> Progress:
        """Where it stands: the newest step in its log, and the newest validation."""
        rows = self.rows()
        step = self.count_steps()
        newest = [f"{name} {row[name]:.4g}" for row in rows[::-1] for name in (self.monitor,) if name in row][:1]
        of = f"/{self.max_steps}" if self.max_steps else ""
        return Progress(step, self.max_steps, ", ".join([f"step {step}{of}" if step else "starting", *newest]))

    def keep(self, ended: Ended) -> None:
        """Write down how its process has ended."""
        status = "stopped" if ended.stopped else "failed" if ended.failed else "finished"
        state: dict[str, Any] = {"status": status, "seconds": round(self.seconds + ended.seconds, 3)}
        write_atomically(self.home / STATE, json.dumps(state).encode())

    def validations(self) -> dict[int, float]:
        """The monitored measure by the outer step after which it was measured."""
        return {int(row["step"]) + 1: row[self.monitor] for row in self.rows() if self.monitor in row}

    def tests(self) -> dict[str, float]:
        """The newest value of every ``test/`` measure."""
        values: dict[str, float] = {}
        for row in self.rows():
            values.update({name: value for name, value in row.items() if name.startswith("test/")})
        return values

    def count_steps(self) -> int:
        """The outer steps that it has done."""
        return max((int(row["step"]) + (not _is_test(row)) for row in self.rows()), default=0)

    def rows(self) -> list[dict[str, float]]:
        """The rows of ``metrics.csv`` as far as they are whole, each with the numbers that it holds."""
        path = self.run / "metrics.csv" if self.run else None
        if path is None or not path.is_file():
            return []
        status = path.stat()
        stamp = (path, status.st_mtime_ns, status.st_size)
        if stamp != self._stamp:
            self._rows, self._stamp = _read(path), stamp
        return self._rows

    def _state(self) -> dict[str, Any]:
        try:
            state = json.loads((self.home / STATE).read_text())
        except (OSError, ValueError):
            return {}
        return state if isinstance(state, dict) else {}


def format_measure(name: str, value: float, half_width: float = math.nan) -> str:
    """A measure as text: an accuracy in percent, with half the width of its interval where that is known."""
    if name.endswith("acc"):
        return f"{100 * value:.2f} %" + (f" ± {100 * half_width:.2f}" if math.isfinite(half_width) else "")
    return f"{value:.4g}" + (f" ± {half_width:.2g}" if math.isfinite(half_width) else "")


def _is_test(row: Mapping[str, float]) -> bool:
    return any(name.startswith("test/") for name in row)


def _read(path: Path) -> list[dict[str, float]]:
    rows = [{name: parse_number(value) for name, value in row.items() if value} for row in read_whole_rows(path)]
    return [row for row in rows if math.isfinite(row.get("step", math.nan))]
