"""``run.json``: what a run's folder says about the run, however it has ended."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from metalearn.cli import main
from metalearn.experiments.asked import read_words
from metalearn.experiments.origin import describe_process, read_commit
from metalearn.experiments.record import Record, Session, read_record, write_record
from tests.cli.test_configs import SMALL, TINY
from tests.cli.test_endings import send

RUN = Path("runs/maml_glyphs_5w1s/version_0")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def fit(*args: object) -> None:
    main(["fit", *SMALL, *TINY, *map(str, args)])


def read(folder: Path = RUN) -> Record:
    record = read_record(folder)
    assert record is not None
    return record


def test_a_run_says_how_to_repeat_it_and_what_has_worked_on_it() -> None:
    fit("--model.inner_lr", "0.3", "--run_name", "a run")
    folder = Path("runs/a run/version_0")
    session = read(folder).session
    assert (session.command, session.state, session.step, session.seed) == ("fit", "finished", 2, 0)
    assert session.configs == ["maml_glyphs_5w1s"]
    assert session.changes["model.inner_lr"] == "0.3"
    assert "run_name" not in session.changes
    assert session.origin["working_folder"] == os.getcwd()
    assert {"python", "torch", "lightning", "metalearn-lightning"} <= session.origin["versions"].keys()
    assert session.origin["machine"]["cores"] >= 1
    assert session.start <= str(session.end)
    command = json.loads((folder / "run.json").read_text())["repeat"]
    assert shlex.split(command) == ["python", "-m", "metalearn", *session.arguments]
    best = folder / "checkpoints/best.ckpt"
    main(["test", "--ckpt_path", str(best), "--trainer.accelerator", "cpu"])
    fit("--ckpt_path", "last", "--run_name", "a run", "--model.inner_lr", "0.3", "--trainer.max_steps", "3")
    record = read(folder)
    assert [record.session.step, record.first.step] == [3, 2]
    assert len(record.session.test_tasks) == 3
    assert record.session.test_tasks == record.evaluations[0].test_tasks
    assert [(each.command, each.state) for each in record.evaluations] == [("test", "finished")]
    arguments = yaml.safe_load((folder / "hparams.yaml").read_text())
    assert arguments["model"]["init_args"]["backbone"]["init_args"]["hidden"] == 4
    assert arguments["model"]["init_args"]["outer_optimizer"]["class_path"] == "torch.optim.Adam"
    assert arguments["data"]["init_args"]["cache_dir"] is None  # whole, with what is left at its default
    assert arguments["inner_lr"] == 0.3


def test_a_stopped_run_and_a_failed_one_say_so() -> None:
    with pytest.raises(SystemExit):
        fit(*send("SIGTERM", "train", 1))
    assert (read().session.state, read().session.step, read().session.error) == ("interrupted", 1, None)
    with pytest.raises(RuntimeError, match="broken"):
        fit("--trainer.callbacks+=tests.cli.ending_callbacks.BrokenTest")
    session = read(RUN.with_name("version_1")).session
    assert (session.state, session.step, session.error) == ("failed", 2, "broken")


def test_what_writes_nothing_has_no_record() -> None:
    fit("--trainer.fast_dev_run", "true")
    assert not list(Path().rglob("run.json"))


def test_an_evaluation_does_not_speak_for_a_training_without_a_record() -> None:
    fit()
    (RUN / "run.json").unlink()
    main(["validate", "--ckpt_path", str(RUN / "checkpoints/best.ckpt"), "--trainer.accelerator", "cpu"])
    assert not (RUN / "run.json").exists()


def test_a_killed_process_leaves_an_unfinished_run() -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    session = Session(command="fit", process=describe_process(process.pid))
    write_record(Path(), Record("a", session))
    assert read(Path()).session.state == "running"
    process.kill()
    process.wait()
    assert read(Path()).session.state == "unfinished"
    write_record(Path(), Record("a", replace(session, process={**session.process, "host": "elsewhere"})))
    assert read(Path()).session.state == "unfinished"  # nothing is known of a process of another host


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", "3", '{"command": 3}', '{"name": "x"}', "\x00\xff", '{"a":' * 5000, "NaN", '"fit"'],
)
def test_what_is_no_record_is_none(content: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(content)
    assert read_record(tmp_path) is None


def test_fields_of_wrong_types_are_left_out(tmp_path: Path) -> None:
    wrong: dict[str, Any] = {"command": "fit", "seed": "x", "changes": {"a": 1}, "configs": [2], "status": "?", "end": 3,
                             "process": [], "earlier": [3, {"step": 5}], "evaluations": "none", "summary": 7}  # fmt: skip
    (tmp_path / "run.json").write_text(json.dumps(wrong))
    record = read(tmp_path)
    assert (record.session.seed, record.session.changes, record.session.configs) == (None, {"a": "1"}, ["2"])
    assert (record.session.state, record.first.step, record.evaluations) == ("unfinished", 5, [])


def test_what_json_cannot_hold_is_written_all_the_same(tmp_path: Path) -> None:
    session = Session(command="fit", summary={"loss": float("nan"), "path": Path("x"), "pair": (1, float("inf"))})
    write_record(tmp_path, Record("a", session))
    assert read(tmp_path).session.summary == {"loss": None, "path": "x", "pair": [1, None]}


def test_words_are_read_as_they_were_typed() -> None:
    words = ["fit", "--config=a.yaml", "-cb", "--model.inner_lr", "0.1", "--model.inner_lr=-1", "--data", "X", "--flag",
             "--trainer.callbacks+=Y", "--ckpt_path", "last"]  # fmt: skip
    asked = read_words(words, ("fit", "test"), "default")
    assert (asked.command, asked.configs) == ("fit", ["a.yaml", "b"])
    assert asked.changes == {"model.inner_lr": "-1", "data": "X", "flag": "true", "trainer.callbacks": "Y"}
    assert read_words(["fit"], ("fit",), "default").configs == ["default"]
    assert read_words(["fit", "--model", "MAML"], ("fit",), "default").configs == []


def test_the_commit_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_commit(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "file").write_text("1")
    for words in (["init", "-q"], ["add", "file"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], check=True)
    clean = read_commit(tmp_path)
    assert clean is not None
    assert len(clean["hash"]) == 40
    assert not clean["dirty"]
    (tmp_path / "file").write_text("2")
    assert read_commit(tmp_path) == {**clean, "dirty": True}
    assert read_commit(tmp_path, tmp_path / "other") is None  # a repository that does not know the file
    monkeypatch.setenv("PATH", "")
    assert read_commit(tmp_path) is None
