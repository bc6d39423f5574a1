"""Sweeps: what is tried, what is pruned, what goes on, and what is left in the folder."""

from __future__ import annotations

import csv
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from metalearn.experiments.board import Board
from metalearn.experiments.parallel import Processes
from metalearn.experiments.space import read_settings
from metalearn.experiments.training import Training
from tests.experiments.scripted import make_scripted

optuna = pytest.importorskip("optuna", reason="the extra sweep is not installed")

from metalearn.experiments.sweep import Sweep  # noqa: E402
from metalearn.experiments.sweep_files import draw_slices, write_best, write_trials  # noqa: E402

Make = Callable[[str, dict[str, str]], Training]


def sweep_once(folder: Path, texts: list[str], make: Make, trials: int = 4, direction: str = "min", warmup: int | None = None,
               ) -> tuple[Sweep, int]:  # fmt: skip
    """What one command does."""
    folder.mkdir(exist_ok=True)
    sweep = Sweep(folder, read_settings(texts), make, direction, warmup)
    total = sweep.enqueue(trials)
    return sweep, sweep.run(Processes(1, Board("sweep", total, sweep.count_done())), total)


def starts(folder: Path) -> dict[str, int]:
    return {path.parent.name: len(path.read_text()) for path in folder.glob("*/starts")}


@pytest.mark.parametrize(
    ("direction", "best"), [("min", {"a": "0.5", "b": "[1,2]"}), ("max", {"a": "3", "b": "[1,2]"})]
)
def test_lists_are_tried_in_all_combinations(direction: str, best: dict[str, str], tmp_path: Path) -> None:
    def make(name: str, values: dict[str, str]) -> Training:
        return make_scripted(
            tmp_path / name, float(values["a"]) * (1 if values["b"] == "[1,2]" else 0.9 if direction == "max" else 2)
        )

    sweep, failures = sweep_once(tmp_path, ["a=3,0.5", "b=[1,2],[3,4]"], make, direction=direction)
    assert failures == 0
    assert [outcome.values for outcome in sweep.outcomes()] == [
        {"a": a, "b": b} for a in ("3", "0.5") for b in ("[1,2]", "[3,4]")
    ]
    chosen = sweep.best()
    assert chosen is not None
    assert chosen.values == best
    sweep_once(tmp_path, ["a=3,0.5", "b=[1,2],[3,4]"], make, direction=direction)
    assert starts(tmp_path) == {f"trial_{number}": 1 for number in range(4)}


def test_ranges_are_drawn_from_and_more_trials_add_to_those_that_are_there(tmp_path: Path) -> None:
    def make(name: str, values: dict[str, str]) -> Training:
        return make_scripted(tmp_path / name, float(values["lr"]))

    texts = ["lr=log:0.001..1", "steps=2..5", "kind=a,b"]
    sweep_once(tmp_path, texts, make, 3)
    sweep, _ = sweep_once(tmp_path, texts, make, 7)
    values = [outcome.values for outcome in sweep.outcomes()]
    assert len(values) == 7
    assert len({value["lr"] for value in values}) == 7  # the second command does not draw the same again
    assert all(
        0.001 <= float(value["lr"]) <= 1 and int(value["steps"]) in range(2, 6) and value["kind"] in "ab"
        for value in values
    )
    assert starts(tmp_path) == {f"trial_{number}": 1 for number in range(7)}
    best = sweep.best()
    assert best is not None
    assert best.value == pytest.approx(min(float(value["lr"]) for value in values) / 2)


def test_a_trial_below_the_median_is_pruned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def make(name: str, values: dict[str, str]) -> Training:
        value = float(values["a"])
        return make_scripted(tmp_path / name, value, waits=value == 9)

    sweep, failures = sweep_once(tmp_path, ["a=1,2,3,4,5,9,0.5"], make, warmup=3)
    assert failures == 0
    assert [outcome.state for outcome in sweep.outcomes()] == ["complete"] * 5 + ["pruned", "complete"]
    assert "trial 5: pruned at step 10, val/loss 4.5; a 9" in capsys.readouterr().out


def test_one_that_fails_is_tried_again_by_the_next_command(tmp_path: Path) -> None:
    def make(name: str, values: dict[str, str]) -> Training:
        return make_scripted(tmp_path / name, 1.0, fails_first=values["a"] == "2")

    sweep, failures = sweep_once(tmp_path, ["a=1,2,3"], make)
    assert failures == 1
    assert [outcome.state for outcome in sweep.outcomes()] == ["complete", "failed", "complete"]
    sweep, failures = sweep_once(tmp_path, ["a=1,2,3"], make)
    assert failures == 0
    assert [(outcome.state, outcome.values["a"]) for outcome in sweep.outcomes()] == [
        ("complete", value) for value in "123"
    ]
    assert starts(tmp_path) == {"trial_0": 1, "trial_1": 2, "trial_2": 1}


def test_what_was_interrupted_goes_on(tmp_path: Path) -> None:
    waits = True

    def make(name: str, values: dict[str, str]) -> Training:
        return make_scripted(tmp_path / name, 1.0, waits=waits and values["a"] == "2")

    def interrupt() -> None:
        while not list(tmp_path.glob("trial_1/version_0/metrics.csv")):
            threading.Event().wait(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        sweep_once(tmp_path, ["a=1,2,3"], make)
    thread.join()
    assert starts(tmp_path) == {"trial_0": 1, "trial_1": 1}
    waits = False
    sweep, _ = sweep_once(tmp_path, ["a=1,2,3"], make)
    assert [outcome.state for outcome in sweep.outcomes()] == ["complete"] * 3
    assert starts(tmp_path) == {"trial_0": 1, "trial_1": 2, "trial_2": 1}


def test_what_is_left_in_the_folder(tmp_path: Path) -> None:
    settings = read_settings(["a=1,2", "b=log:0.1..1"])

    def make(name: str, values: dict[str, str]) -> Training:
        return make_scripted(tmp_path / name, float(values["a"]))

    sweep, _ = sweep_once(tmp_path, ["a=1,2", "b=log:0.1..1"], make, 4)
    best = sweep.best()
    assert best is not None
    with write_trials(tmp_path / "trials.csv", sweep.outcomes(), settings, "val/loss").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["trial"] for row in rows] == [f"trial_{number}" for number in range(4)]
    assert [(row["state"], float(row["val/loss"])) for row in rows] == [
        ("complete", float(row["a"]) / 2) for row in rows
    ]
    assert draw_slices(tmp_path / "sweep.png", sweep.outcomes(), settings, best, "a $title$").stat().st_size > 0
    options = yaml.safe_load(write_best(tmp_path / "best.yaml", best, "mine_best", True).read_text())
    assert options == {"trainer": {"max_steps": 10}, "run_name": "mine_best", "test_after_fit": True}
