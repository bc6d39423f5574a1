"""``metalearn study inner_steps`` and ``step_size`` through the command line: tables, pictures, stopping, going on, processes."""

from __future__ import annotations

import contextlib
import csv
import io
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from metalearn.cli import main
from metalearn.studies import inner_steps
from metalearn.studies.cases import ShareFile
from metalearn.studies.image_runs import IMAGES
from tests.made import make_omniglot

Rows = list[dict[str, str]]


def read(path: Path) -> Rows:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def thin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks with 4 filters."""
    for name, setting in IMAGES.items():
        monkeypatch.setitem(IMAGES, name, replace(setting, network={**setting.network, "hidden": 4}))


SMALL = ["--inner_steps", "[1,3]", "--outer_steps", "4", "--tasks", "3", "--seeds", "2"]


def study(name: str, output: Path, *more: object) -> Path:
    main(["study", name, "--output", str(output), *SMALL, *map(str, more)])
    with Image.open(output / f"{name}.png") as picture:
        assert picture.width > 900
    return output / f"{name}.csv"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The table of a study of inner steps, and what it printed."""
    with contextlib.redirect_stdout(io.StringIO()) as output:
        table = study("inner_steps", tmp_path_factory.mktemp("whole"))
    return table, output.getvalue()


def test_inner_steps_on_tasks_of_known_smoothness(whole: tuple[Path, str]) -> None:
    rows, printed = read(whole[0]), whole[1]
    assert "mean ± 95 % interval over 2 seeds" in printed
    assert printed.count("| N = 3 ") == 2
    for row in rows:
        assert float(row["inner_lr"]) == (0.25 if row["schedule"] == "fixed" else 0.25 / int(row["inner_steps"]))
        assert int(row["calls"]) == int(row["step"]) * 3 * (2 * int(row["inner_steps"]) + 1)
    assert len(rows) == 2 * 2 * 2 * 2 * 5
    first = [row for row in rows if row["inner_steps"] == "1" and row["part"] == "worst" and row["seed"] == "1"]
    assert [row["gradient_norm"] for row in first[:5]] == [row["gradient_norm"] for row in first[5:]]


def test_a_study_that_was_stopped_goes_on(
    whole: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    descend, seeds = inner_steps.descend, []

    def stop(family: str, steps: int, size: float, seed: int, *rest: Any) -> Any:
        seeds.append(seed)
        if seed == 1:
            signal.raise_signal(signal.SIGINT)
        return descend(family, steps, size, seed, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(inner_steps, "descend", stop)
        with pytest.raises(SystemExit) as stopped:
            study("inner_steps", tmp_path / "parts")
        assert stopped.value.code == 130
        assert not (tmp_path / "parts/inner_steps.csv").exists()
        seeds.clear()
        patch.setattr(signal, "raise_signal", lambda signum: None)
        assert study("inner_steps", tmp_path / "parts").read_text() == whole[0].read_text()
        assert set(seeds) == {1}
    with pytest.raises(SystemExit):
        study("inner_steps", tmp_path / "parts", "--outer_steps", "5")
    assert "was begun with outer_steps 4, but now it is outer_steps 5" in capsys.readouterr().err


def test_two_processes_give_the_numbers_of_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alone = study("step_size", tmp_path / "one", "--inner_steps", "[2]")
    both = study("step_size", tmp_path / "two", "--inner_steps", "[2]", "--processes", "2")
    assert both.read_text() == alone.read_text()
    printed = capsys.readouterr().out
    assert "known_0: " in printed
    assert "| worst, N = 2" in printed
    for row in read(alone):
        if row["kind"] == "boundary":
            assert 0.5 < float(row["ratio"]) < 2


@pytest.mark.usefixtures("thin")
def test_on_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_omniglot(tmp_path / "omniglot", drawings=6)
    few = ["--omniglot", root, "--image_seeds", 1, "--image_steps", 2, "--test_tasks", 2]
    rows = read(study("inner_steps", tmp_path / "a", *few, "--marks", 2))
    mine = [row for row in rows if row["part"] == "omniglot"]
    assert [(row["inner_steps"], row["schedule"], row["step"]) for row in mine] == [
        (steps, schedule, step) for steps in "13" for schedule in ("fixed", "c/N") for step in "12"]  # fmt: skip
    assert all(0 <= float(row["accuracy"]) <= 100 and float(row["gradient_norm"]) > 0 for row in mine)
    assert [row["calls"] for row in mine[-2:]] == ["28", "56"]
    sizes = ["--inner_lrs", "[0.1,1e30]", "--image_inner_steps", "[2]"]
    rows = [row for row in read(study("step_size", tmp_path / "b", *few, *sizes)) if row["part"] == "omniglot"]
    assert [(row["inner_lr"], row["diverged"]) for row in rows] == [("0.1", "0"), ("1e+30", "1")]
    assert rows[1]["accuracy"] == "20.0"
    assert "| 1e+30 " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["step_size", "--inner_steps", "[]"], "inner_steps is empty"),
        (["step_size", "--outer_step", "2"], "outer_step is 2, but no outer loop converges from 2 on"),
        (["step_size", "--inner_lrs", "[-1]"], "inner_lrs is -1"),
        (["inner_steps", "--inner_steps", "[0]"], "inner_steps is 0"),
        (["inner_steps", "--seeds", "0"], "seeds is 0"),
        (["inner_steps", "--step_size", ".nan"], "step_size is nan"),
        (["inner_steps", "--processes", "0"], "processes is 0"),
        (["inner_steps", "--processes", "1000"], "processes is 1000"),
        (["geometry", "--step_size", "0"], "step_size is 0"),
        (["geometry", "--miniimagenet", "ROOT"], "miniImageNet"),
        (["batch_size", "--batches", "[]"], "batches is empty"),
        (["batch_size", "--tasks", "1"], "tasks is 1"),
        (["inner_steps", "--omniglot", "ROOT", "--image_steps", "0"], "image_steps is 0"),
    ],
)
def test_what_a_user_gets_wrong_is_one_line(
    args: list[str], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["study", *(str(tmp_path) if arg == "ROOT" else arg for arg in args), "--output", str(tmp_path / "out")])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert line in error
    assert error.startswith("metalearn: error: ")
    assert error.count("\n") == 1


def test_ctrl_c_stops_processes_that_were_started_in_the_background(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A process in the background of a script ignores SIGINT, and so would those that it starts."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        look, stops = ShareFile.look, []

        def stop(self: ShareFile) -> Any:
            progress = look(self)
            if progress.done and not stops:
                stops.append(signal.raise_signal(signal.SIGINT))
            return progress

        with monkeypatch.context() as patch:
            patch.setattr(ShareFile, "look", stop)
            with pytest.raises(SystemExit) as stopped:
                study("inner_steps", tmp_path, "--processes", "2", "--outer_steps", "300", "--seeds", "1")
        assert stopped.value.code == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert "stopping known_0: they begin anew, and the same command goes on" in capsys.readouterr().out
    assert not list(tmp_path.glob("cases/*/share"))
