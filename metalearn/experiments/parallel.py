"""Commands in processes side by side: threads shared out, output kept, ended together by a signal."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

from metalearn.errors import ConfigError
from metalearn.experiments.board import Board, Row
from metalearn.experiments.stop import StopRequest

__all__ = ["Ended", "Job", "Processes", "Progress", "count_cores"]

LOG = "output.log"
TICK = 0.2
"""Seconds between two looks at the processes."""
PATIENCE = 60.0
"""Seconds that a process has to save its state and end, once it is asked to; then it is ended."""
NOTHING_SAID = "it said nothing"
KEPT = {True: "their states are saved", False: "they begin anew"}


class Progress(NamedTuple):
    """Where a job stands.

    Attributes:
        done: how much is done, in steps.
        total: of how many; ``None`` where that is not known.
        text: what is to be shown beside it.

    Example:
        >>> from metalearn.experiments.parallel import Progress
        >>> Progress(done=50, total=200, text="val 91.20 %")
        Progress(done=50, total=200, text='val 91.20 %')
    """

    done: float
    total: float | None
    text: str


@dataclass(frozen=True)
class Job:
    """A command that runs in a process of its own.

    Attributes:
        name: what it is called where it is shown.
        command: the program and its arguments.
        folder: where ``output.log`` is written, with all that it prints.
        look: says where it stands.
        saves: whether it saves its state when it is asked to end, or begins anew.

    Example:
        >>> import sys
        >>> from pathlib import Path
        >>> from metalearn.experiments.parallel import Job, Progress
        >>> job = Job("mine", [sys.executable, "mine.py"], Path("mine"), lambda: Progress(0, None, ""))
        >>> job.log.as_posix()
        'mine/output.log'
    """

    name: str
    command: Sequence[str]
    folder: Path
    look: Callable[[], Progress]
    saves: bool = True

    @property
    def log(self) -> Path:
        """What the job has printed."""
        return self.folder / LOG


@dataclass(frozen=True)
class Ended:
    """A job that has ended.

    Attributes:
        job: that has ended.
        code: its exit code; 0 where all went well.
        seconds: how long it ran.
        stopped: whether it has ended before its time because it was asked to.

    Example:
        >>> from pathlib import Path
        >>> from metalearn.experiments.parallel import Ended, Job, Progress
        >>> job = Job("mine", ["mine"], Path("mine"), lambda: Progress(0, None, ""))
        >>> Ended(job, code=1, seconds=2.0, stopped=False).failed
        True
    """

    job: Job
    code: int
    seconds: float
    stopped: bool

    @property
    def failed(self) -> bool:
        """Whether it ended by itself, and not well."""
        return self.code != 0 and not self.stopped

    @property
    def reason(self) -> str:
        """The last line that it printed, without what names the program."""
        lines = [line.strip() for line in _read_tail(self.job.log).splitlines() if line.strip()]
        return lines[-1].removeprefix("metalearn: error: ") if lines else NOTHING_SAID


class Processes:
    """Runs jobs side by side.

    Ctrl-C and SIGTERM end all of them: each saves its state as it does by itself. A second Ctrl-C ends them at once.

    Args:
        count: how many run at a time. They share the cores.
        board: shows them.
        devices: names of CUDA devices that the processes take in turn; none for whatever they find.

    Raises:
        ConfigError: there are fewer cores.

    Example:
        >>> import sys
        >>> from pathlib import Path
        >>> from metalearn.experiments.board import Board
        >>> from metalearn.experiments.parallel import Job, Processes, Progress
        >>> command = [sys.executable, "-c", "print('hello')"]
        >>> job = Job("mine", command, Path("mine"), lambda: Progress(0, None, ""))
        >>> with Board("jobs", total=1) as board:
        ...     failed = Processes(1, board).run([job], end=lambda ended: f"{ended.job.name} has ended")
        mine has ended
    """

    def __init__(self, count: int, board: Board, devices: Sequence[str] = ()) -> None:
        cores = count_cores()
        if not 1 <= count <= cores:
            plural = "s" if cores > 1 else ""
            raise ConfigError(
                f"processes is {count}, but it must be from 1 to {cores}, since this machine gives {cores} core{plural}; use "
                f"--processes {min(max(count, 1), cores)}"
            )
        self.count, self.board, self.devices = count, board, devices
        self._threads = max(cores // count, 1)
        self._running: dict[int, _Running] = {}

    def run(
        self, jobs: Iterable[Job], end: Callable[[Ended], str], goes_on: Callable[[Job], bool] = lambda job: True
    ) -> int:
        """Run all jobs.

        Args:
            jobs: taken one by one, as processes become free.
            end: is called with each job that has ended, and gives the line that is printed of it.
            goes_on: is asked again and again of each job that runs; where it says no, the job is asked to end.

        Returns:
            how many have failed.
        """
        waiting, failures = iter(jobs), 0
        with StopRequest() as stop, self.board:
            try:
                while self._fill(waiting, stop):
                    time.sleep(TICK)
                    failures += self._look(end, goes_on)
            finally:
                self._end_all(stop, end)
        stop.deliver()
        return failures

    def _fill(self, jobs: Iterator[Job], stop: StopRequest) -> bool:
        """Start jobs where there is room; whether any job runs."""
        for slot in range(self.count):
            if slot not in self._running and not stop.asked and (job := next(jobs, None)) is not None:
                self._running[slot] = _Running(job, self._environment(slot))
        return bool(self._running) and not stop.asked

    def _look(self, end: Callable[[Ended], str], goes_on: Callable[[Job], bool]) -> int:
        """Take note of what has ended, and show what runs; how many have failed."""
        failures = 0
        for slot, running in list(self._running.items()):
            code = running.process.poll()
            if code is None:
                if not running.stopped and not goes_on(running.job):
                    running.ask(signal.SIGTERM)
                continue
            del self._running[slot]
            ended = running.close(code)
            failures += ended.failed
            line = end(ended)
            self.board.end(_describe_failure(ended) if ended.failed else line, ended.seconds, ended.failed)
        self.board.show([running.row() for running in self._running.values()])
        return failures

    def _end_all(self, stop: StopRequest, end: Callable[[Ended], str]) -> None:
        """Ask what runs to end, and wait for it."""
        if not self._running:
            return
        jobs = [running.job for running in self._running.values()]
        names, kept = ", ".join(job.name for job in jobs), KEPT[all(job.saves for job in jobs)]
        self.board.say(f"stopping {names}: {kept}, and the same command goes on; Ctrl-C again ends them at once")
        for running in self._running.values():
            running.ask(stop.signum or signal.SIGTERM)
        last = time.monotonic() + PATIENCE
        while any(running.process.poll() is None for running in self._running.values()):
            if stop.insists or time.monotonic() > last:
                for running in self._running.values():
                    running.kill()
            time.sleep(TICK / 4)
        for running in self._running.values():
            ended = running.close(running.process.wait())
            if stop.asked:  # else what has failed is no job, and comes out of here
                self.board.say(end(ended))
        self._running.clear()

    def _environment(self, slot: int) -> dict[str, str]:
        """What a process inherits: its share of the threads, and its device."""
        threads = str(min(self._threads, _read_threads()))
        more = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "PYTHONUNBUFFERED": "1"}
        if self.devices:
            more["CUDA_VISIBLE_DEVICES"] = self.devices[slot % len(self.devices)]
        return {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, **more}


class _Running:
    """A job whose process has been started, in a session of its own: a terminal's Ctrl-C reaches the one that waits for it."""

    def __init__(self, job: Job, environment: dict[str, str]) -> None:
        self.job, self.stopped = job, False
        self._begun = time.monotonic()
        self._first: tuple[float, float] | None = None
        self._before = job.look().done
        job.folder.mkdir(parents=True, exist_ok=True)
        self._output: IO[bytes] = job.log.open("ab")
        self._output.write(f"$ {shlex.join(job.command)}\n".encode(errors="surrogateescape"))
        self._output.flush()
        self.process = subprocess.Popen(
            list(job.command), stdin=subprocess.DEVNULL, stdout=self._output, stderr=subprocess.STDOUT, env=environment,
            start_new_session=True,
        )  # fmt: skip

    def ask(self, signum: int) -> None:
        """Ask the process to end."""
        self.stopped = True
        with suppress(ProcessLookupError):
            self.process.send_signal(signum)

    def kill(self) -> None:
        """End the process."""
        with suppress(ProcessLookupError):
            self.process.kill()

    def close(self, code: int) -> Ended:
        """Close the file of its output."""
        self._output.close()
        return Ended(self.job, code, time.monotonic() - self._begun, self.stopped and code != 0)

    def row(self) -> Row:
        """Where it stands, and when it ends at the pace until now."""
        now = time.monotonic()
        done, total, text = self.job.look()
        if self._first is None and done > self._before:
            self._first = now, done  # its start counts for nothing in its pace
        since, first = self._first or (now, done)
        left = (now - since) / (done - first) * (total - done) if total and done > first else None
        return Row(self.job.name, done / total if total else None, text, now - self._begun, left)


def count_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _read_threads() -> int:
    """The most threads that the user allows a process."""
    most = os.environ.get("OMP_NUM_THREADS", "")
    return int(most) if most.isdigit() and int(most) > 0 else count_cores()


def _describe_failure(ended: Ended) -> str:
    how = f"exit code {ended.code}" if ended.code > 0 else f"signal {-ended.code}"
    return f"{ended.job.name} failed ({how}): {ended.reason}; all that it printed is in {ended.job.log}"


def _read_tail(path: Path, size: int = 4096) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(path.stat().st_size - size, 0))
            return file.read().decode(errors="replace")
    except OSError:
        return ""
