"""Commands side by side: what each gets, what is kept of it, and how all of them end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from metalearn.errors import ConfigError
from metalearn.experiments.board import Board
from metalearn.experiments.parallel import Ended, Job, Processes, Progress, count_cores


def make_job(name: str, folder: Path, code: str) -> Job:
    return Job(name, [sys.executable, "-S", "-c", code], folder / name, lambda: Progress(0, None, "works"))


def run(jobs: list[Job], count: int = 1, goes_on: Callable[[Job], bool] = lambda job: True) -> tuple[int, list[Ended]]:
    ended: list[Ended] = []

    def end(one: Ended) -> str:
        ended.append(one)
        return f"{one.job.name} is done"

    return Processes(count, Board("jobs", len(jobs))).run(jobs, end, goes_on), ended


def test_one_that_fails_is_a_line_and_the_others_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = [make_job("a", tmp_path, "print('fine')"), make_job("b", tmp_path, "raise SystemExit('metalearn: error: no luck')"),
            make_job("c", tmp_path, "print('fine, too')")]  # fmt: skip
    failures, ended = run(jobs)
    assert failures == 1
    assert [(one.job.name, one.code, one.failed) for one in ended] == [("a", 0, False), ("b", 1, True), ("c", 0, False)]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "a is done"
    assert lines[1] == f"b failed (exit code 1): no luck; all that it printed is in {tmp_path / 'b' / 'output.log'}"
    assert (tmp_path / "a" / "output.log").read_text().splitlines()[-1] == "fine"


def test_the_cores_are_shared_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    code = "import os; print(os.environ['OMP_NUM_THREADS'])"
    for count in {1, count_cores()}:
        job = make_job(str(count), tmp_path, code)
        run([job], count)
        assert job.log.read_text().splitlines()[-1] == str(count_cores() // count)


@pytest.mark.parametrize("count", [0, count_cores() + 1])
def test_as_many_processes_as_there_are_cores(count: int) -> None:
    with pytest.raises(
        ConfigError, match=f"processes is {count}, but it must be from 1 to {count_cores()}, .*--processes"
    ):
        Processes(count, Board("jobs", 1))


def test_one_that_is_not_to_go_on_is_asked_to_end(tmp_path: Path) -> None:
    jobs = [make_job("long", tmp_path, "import time; time.sleep(100)"), make_job("next", tmp_path, "pass")]
    failures, ended = run(jobs, goes_on=lambda job: job.name != "long")
    assert failures == 0
    assert [(one.stopped, one.code) for one in ended] == [(True, -signal.SIGTERM), (False, 0)]


def test_jobs_are_taken_as_processes_become_free(tmp_path: Path) -> None:
    """So that the next one may depend on what those before have come to."""
    seen: list[str] = []

    def make_jobs() -> object:
        for number in range(3):
            seen.append(f"start {number}")
            yield make_job(str(number), tmp_path, "pass")

    Processes(1, Board("jobs", 3)).run(make_jobs(), lambda one: seen.append(f"end {one.job.name}") or "")  # type: ignore[arg-type,func-returns-value]
    assert seen == ["start 0", "end 0", "start 1", "end 1", "start 2", "end 2"]


WAITS = """
import sys
from pathlib import Path
from metalearn.experiments.board import Board
from metalearn.experiments.parallel import Job, Processes, Progress
here = Path(sys.argv[1])
code = '''import signal, sys, time, pathlib
def leave(number, frame):
    pathlib.Path("saved").write_text(signal.Signals(number).name)
    sys.exit(130)
signal.signal(signal.SIGINT, %s)
pathlib.Path("ready").touch()
time.sleep(100)'''
jobs = [Job("a", [sys.executable, "-S", "-c", code % sys.argv[2]], here, lambda: Progress(0, None, ""))]
try:
    Processes(1, Board("jobs", 1)).run(jobs, lambda ended: f"a has ended by {ended.code}")
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.parametrize(("handler", "code"), [("leave", 130), ("signal.SIG_IGN", -9)])
def test_a_signal_ends_them_all(handler: str, code: int, tmp_path: Path) -> None:
    """One that does not listen is ended by a second Ctrl-C."""
    command = [sys.executable, "-c", WAITS, str(tmp_path), handler]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})  # fmt: skip
    end = time.monotonic() + 60
    while not (tmp_path / "ready").exists() and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    if code == -9:
        time.sleep(0.6)
        process.send_signal(signal.SIGINT)
    lines = process.communicate(timeout=60)[0].splitlines()
    assert lines[0].startswith("stopping a: their states are saved, and the same command goes on")
    assert lines[1:] == [f"a has ended by {code}", "interrupted"]
    assert (tmp_path / "saved").exists() == (code == 130)
