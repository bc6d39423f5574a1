"""The runs of a folder: what is read of each, whatever is left of it, and the table of them."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from metalearn import ConfigError
from metalearn.cli import main
from metalearn.experiments.folder import find_run, find_runs
from metalearn.experiments.origin import describe_process
from metalearn.experiments.record import Record, Session, write_record

TASKS = "task,loss_step_0,acc_step_0,loss_step_1,acc_step_1\n0,2.0,0.2,1.0,0.5\n1,2.0,0.2,1.0,0.7\n"
METRICS = "epoch,step,train/loss,val/acc\n0,0,1.5,\n0,1,,0.4\n1,2,1.2,\n"
ACCURACY = {"result": {"stage": "test", "measure": "accuracy", "mean": 0.75, "ci95": 0.01, "tasks": 600}}


def make_session(number: int = 0, **values: Any) -> Session:
    session = Session(
        command="fit", arguments=["fit", "--config", "a", "--model.inner_lr", "0.1"], configs=["a"],
        changes={"model.inner_lr": "0.1"}, seed=0, start=f"2026-01-01T00:0{number}:00+00:00",
        origin={"commit": {"hash": "0123456789", "dirty": True}},
    )  # fmt: skip
    return replace(session, **values)


def make_finished(number: int, **values: Any) -> Session:
    ended = make_session(number, **values).finish("finished", step=2, summary=ACCURACY)
    return replace(ended, end=f"2026-01-01T00:0{number}:30+00:00")


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of runs of every kind: whole ones, half-written ones, old ones, and what is no run."""
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "runs"

    def make(name: str, session: Session | None, **files: str) -> Path:
        (root / name).mkdir(parents=True)
        for stem, content in files.items():
            path = root / name / f"{stem}.{'yaml' if stem == 'config' else 'json' if stem == 'run' else 'csv'}"
            path.write_text(content)
            os.utime(path, (0, 0))  # before all that says when it began
        if session is not None:
            write_record(root / name, Record(name.split("/")[0], session))
        return root / name

    make("b/version_0", make_finished(1), test_tasks=TASKS)
    make("a/version_1", make_finished(3))
    make("a/version_0", make_session(2), metrics=METRICS)
    make("with space/ü/version_0", make_session(4, process=describe_process()))
    make("old/version_0", None, config="model: MAML", metrics=METRICS, test_tasks=TASKS)
    make("half/version_0", None, run="{", config="", metrics="step,train/loss\n3")
    make("foreign/version_3", None, notes="nothing")
    make(".hidden/version_0", make_finished(0))
    (root / "b/loop").symlink_to(root, target_is_directory=True)
    (root / "README").write_text("no folder")
    return root


def test_every_run_is_read_as_far_as_it_can_be(runs: Path) -> None:
    listed, left_out = find_runs(runs)
    rows = {run.name: run.as_dict() for run in listed}
    assert [name for name in rows if name not in ("old/version_0", "half/version_0")] == [
        "b/version_0", "a/version_0", "a/version_1", "with space/ü/version_0"
    ]  # fmt: skip
    assert left_out == 1
    whole = rows["a/version_1"]
    assert (whole["state"], whole["steps"], whole["mean"], whole["seconds"]) == ("finished", 2, 0.75, 30.0)
    assert (whole["config"], whole["changes"], whole["commit"]) == ("a", {"model.inner_lr": "0.1"}, "0123456*")
    assert whole["repeat"] == "python -m metalearn fit --config a --model.inner_lr 0.1"
    begun = rows["a/version_0"]
    assert (begun["state"], begun["steps"], begun["stage"], begun["mean"]) == ("unfinished", 3, "validation", 0.4)
    assert rows["with space/ü/version_0"]["state"] == "running"
    old = rows["old/version_0"]
    assert (old["state"], old["steps"], old["stage"], old["tasks"]) == ("unknown", 3, "test", 2)
    assert old["mean"] == pytest.approx(0.6)
    assert old["ci95"] == pytest.approx(1.96 * 0.1)  # s = 0.1 sqrt(2), T = 2
    assert (rows["half/version_0"]["steps"], rows["half/version_0"]["mean"]) == (None, None)


def test_a_later_test_of_a_run_counts(runs: Path) -> None:
    record = find_run("b").record
    assert record is not None
    better = {"result": {"stage": "test", "measure": "accuracy", "mean": 0.9, "ci95": 0.001, "tasks": 6000}}
    later = make_session(8, command="test").finish("finished", summary=better)
    write_record(runs / "b/version_0", record.add(later))
    result = find_run("b").result
    assert result is not None
    assert result.text == "90.00 % ± 0.10"


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_the_table_fits_the_terminal(
    columns: int, runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    main(["runs"])
    printed = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert max(map(len, printed.splitlines())) <= columns
    assert "1 folder holds no run that can be read" in printed
    assert printed.index("b/version_0") < printed.index("a/version_1")
    for word in ("75.00 % ± 1.00", "finished", "unfinished", "running", "inner_lr=0.1", "0123456*"):
        assert word in printed


def test_the_table_in_a_pipe_and_as_csv(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["runs", "runs", "--csv", "all runs.csv"])
    printed = capsys.readouterr().out.splitlines()
    (line,) = [line for line in printed if "a/version_1" in line]
    assert line.split()[:4] == ["a/version_1", "inner_lr=0.1", "2", "75.00"]
    with open("all runs.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    assert rows[-1]["run"] == "with space/ü/version_0"
    assert {row["changes"] for row in rows} == {"", "model.inner_lr=0.1"}


def test_no_runs_and_wrong_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["runs"])
    assert capsys.readouterr().out.strip() == "no runs in runs"
    for words, line in (
        (["nowhere"], "folder is 'nowhere', but there is none; give the folder that holds runs"),
        (["--cvs", "x"], "--cvs is no option of metalearn runs; did you mean --csv?"),
        (["--csv"], "metalearn runs: argument --csv: expected one argument; see metalearn runs --help"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["runs", *words])
        assert stopped.value.code == 2
        assert capsys.readouterr().err == f"metalearn: error: {line}\n"


def test_runs_needs_no_torch(runs: Path) -> None:
    code = (
        "import sys\nfrom metalearn.cli import main\nmain(['runs'])\n"
        "assert not {'torch', 'lightning', 'matplotlib', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=runs.parent)
    assert done.returncode == 0, done.stderr


def test_a_run_is_known_by_many_names(runs: Path) -> None:
    folder = runs / "a/version_1"
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints/best.ckpt").write_text("")
    for name in (
        "a",
        "a/version_1",
        "runs/a",
        "runs/a/version_1/",
        str(folder),
        "runs/a/version_1/checkpoints/best.ckpt",
    ):
        assert find_run(name).folder.samefile(folder), name
    assert find_run("runs").name == "with space/ü/version_0"
    os.chdir(folder)
    assert find_run(".").folder.samefile(folder)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("", "run is '', but it must name a run; metalearn runs lists them"),
        ("a/version_7", "did you mean a/version_0, a/version_1?"),
        ("with spaces/ü/version_0", "did you mean with space/ü/version_0"),
        ("xyzzy", "metalearn runs lists those below runs"),
        ("foreign", "is neither the folder of a run nor the name of one"),
        ("a\0b", "run 'a\\x00b' is neither the folder"),
        ("a" * 5000, "is no path (File name too long)"),
    ],
)
def test_a_name_of_no_run_is_one_line(name: str, line: str, runs: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        find_run(name)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_json_of_the_table_is_plain(runs: Path) -> None:
    rows = [run.as_dict() for run in find_runs(runs)[0]]
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
