"""``metalearn resume``: a run that was cut short ends as if it had not been."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from metalearn.cli import main
from metalearn.experiments.origin import describe_process
from metalearn.experiments.record import Record, Session, read_record, write_record
from tests.cli.test_endings import check_alike, fit, send, weights

STOPPED = Path("runs/stopped run/version_0")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_run_goes_on_by_its_name_and_further(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In mid-epoch, from another folder, bit for bit; the schedule knows of no longer run before it is asked for."""
    plain = ["--model.outer_scheduler", "null", "--test_after_fit", "false"]
    with pytest.raises(SystemExit):
        fit(*plain, *send("SIGTERM", "train", 3), "--run_name", "stopped run")
    config = STOPPED / "config.yaml"
    config.write_text(config.read_text().replace("where: train", "where: never"))
    (tmp_path / "elsewhere").mkdir()
    os.chdir(tmp_path / "elsewhere")
    main(["resume", f"../{STOPPED}"])
    os.chdir(tmp_path)
    assert not list(Path("elsewhere").iterdir())
    record = read_record(STOPPED)
    assert record is not None
    assert (record.first.state, record.first.step) == ("interrupted", 3)
    assert (record.session.state, record.session.step) == ("finished", 6)
    assert record.session.summary is not None
    cost = record.session.summary["training"]
    assert 0 < cost["cpu_seconds"] < cost["cpu_seconds_with_earlier_parts"]
    assert 0 < cost["seconds"] < cost["seconds_with_earlier_parts"]
    main(["resume", "stopped run", "--trainer.max_steps", "8"])
    fit(*plain, "--run_name", "whole", steps=8)
    check_alike(weights(STOPPED / "checkpoints/last.ckpt"), weights(Path("runs/whole/version_0/checkpoints/last.ckpt")))
    capsys.readouterr()
    for words, line in (
        ([], "run stopped run/version_0 has finished at step 8; to go further, add for example --trainer.max_steps 16"),
        (
            ["--trainer.max_steps", "7"],
            "trainer.max_steps is 7, but run stopped run/version_0 has finished at step 8; use for",
        ),
    ):
        check_refused(["stopped run", *words], line, capsys)


def test_two_trainings_never_share_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path("runs/shared/version_0")
    fit("--test_after_fit", "false", "--run_name", "shared", steps=2)
    record = read_record(folder)
    assert record is not None
    other = replace(record.session, status="running", end=None, process=describe_process(os.getppid()))
    write_record(folder, replace(record, session=other))
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        fit("--ckpt_path", str(folder / "checkpoints/last.ckpt"), "--run_name", "shared", steps=4)
    assert stopped.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"metalearn: error: another training (process {os.getppid()}) writes into {folder}; start")
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def check_refused(words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["resume", *words])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"metalearn: error: {line}")
    assert said.count("\n") == 1


def test_what_cannot_go_on_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def make(name: str, config: str | None = "model: MAML\ntrainer: {max_steps: 6}\n", **values: Any) -> None:
        folder = Path("runs") / name / "version_0"
        folder.mkdir(parents=True)
        if config is not None:
            (folder / "config.yaml").write_text(config)
        write_record(
            folder, Record(name, Session(**{"command": "fit", "arguments": ["fit", "--config", "a b"], **values}))
        )

    make("running", process=describe_process(), step=3)
    make("tested", command="test")
    make("unsaved")
    make("bare", config=None)
    make("broken", config="model: [")
    make("epochs", config="trainer: {max_epochs: 3, max_steps: -1}\n", status="finished", step=12)
    for words, line in (
        (["running"], f"run running/version_0 is running (process {os.getpid()}); wait until it has ended, or end it"),
        (["tested"], "run tested/version_0 is of metalearn test, so nothing is left to train; run that again"),
        (["unsaved"], "run unsaved/version_0 has no checkpoints/last.ckpt to go on from; begin it anew: python -m metalearn fit "
                      "--config 'a b'"),
        (["bare"], "run bare/version_0 has no config.yaml, so it cannot go on; train with metalearn fit"),
        (["broken"], "config runs/broken/version_0/config.yaml is no YAML"),
        (["epochs"], "run epochs/version_0 has finished at step 12; to go further, add for example --trainer.max_epochs 6"),
        (["runing"], "run 'runing' is neither the folder of a run nor the name of one below runs; did you mean running"),
        (["unsaved", "--config", "x"], "resume takes no --config, since its configuration is the run's own; leave it out"),
        (["unsaved", "--ckpt_path=x"], "resume takes no --ckpt_path, since it goes on from the run's last checkpoint"),
        (["--trainer.max_steps", "9"], "resume begins with '--trainer.max_steps', but the run comes first; write metalearn"),
    ):  # fmt: skip
        check_refused(words, line, capsys)
    main(["resume"])
    assert capsys.readouterr().out.startswith("usage: metalearn resume RUN [options of fit]\n")
