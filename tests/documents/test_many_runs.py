"""``metalearn seeds`` and ``metalearn sweep`` as their pages show them, on small data: each training is a process."""

from __future__ import annotations

import csv
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.test_configs import ON_ONE_PROBLEM, SMALL, TINY
from tests.made import run_cli
from tests.made_bilevel import make_mnist

pytestmark = pytest.mark.documents


def read(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_seeds(tmp_path: Path, cache: Path) -> None:
    words = ["seeds", "maml_glyphs_5w1s", "--seeds", "2", *SMALL, *TINY]
    done = run_cli(*words, cwd=tmp_path, cache=cache)
    assert "95 % interval of the mean over 2 seeds, Student's t" in done.stdout
    folder = tmp_path / "runs" / "maml_glyphs_5w1s_seeds"
    rows = read(folder / "seeds.csv")
    assert [row["seed"] for row in rows] == ["0", "1"]
    assert (folder / "seeds.png").stat().st_size > 0
    losses = [float(row["test/loss"]) for row in rows]
    assert losses[0] != losses[1]
    more = [*words[:3], "3", *words[4:], "--json"]
    begun = {path: path.stat().st_mtime_ns for path in folder.glob("seed_*/output.log")}
    outcome = json.loads(run_cli(*more, cwd=tmp_path, cache=cache).stdout)
    assert {path: path.stat().st_mtime_ns for path in begun} == begun
    values = [float(row["test/loss"]) for row in read(folder / "seeds.csv")]
    assert outcome["measures"]["test/loss"]["mean"] == pytest.approx(statistics.fmean(values))
    assert outcome["measures"]["test/loss"]["std"] == pytest.approx(statistics.stdev(values))
    tasks = [path.read_text().splitlines() for path in folder.glob("seed_*/version_0/test_tasks.csv")]
    assert len(tasks) == 3
    refused = run_cli(*words, "--model.inner_steps", "2", cwd=tmp_path, cache=cache, code=2)
    assert "was begun with model.inner_steps 1, but now it is model.inner_steps 2" in refused.stderr


def test_seeds_are_stopped_and_go_on(tmp_path: Path, cache: Path) -> None:
    """What goes on is the training that was not stopped."""
    words = ["seeds", "--seeds", "1", *SMALL, *TINY, "--trainer.max_steps", "60", "--data.train_tasks", "1000"]
    run_cli(*words, "--output", "whole", cwd=tmp_path, cache=cache)
    command = [sys.executable, "-m", "metalearn", *words]
    environment = {**os.environ, "METALEARN_CACHE": str(cache), "OMP_NUM_THREADS": "1"}  # as run_cli: sums depend on it
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    folder = tmp_path / "runs" / "maml_glyphs_5w1s_seeds"
    end = time.monotonic() + 120
    while not list(folder.glob("seed_0/version_0/metrics.csv")) and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, out + err
    assert "seed 0: stopped at step" in out
    assert err.splitlines()[-1] == "metalearn: stopped by SIGINT"
    run_cli(*words, cwd=tmp_path, cache=cache)
    assert read(folder / "seeds.csv")[0]["test/loss"] == read(tmp_path / "whole" / "seeds.csv")[0]["test/loss"]


def test_a_sweep_and_its_best_configuration(tmp_path: Path, cache: Path) -> None:
    lists = ["--set", "data.shots=1,2", "--set", "model.initial_inner_lr=0.1,bad"]
    wrong = run_cli("sweep", *lists, *SMALL, *TINY, cwd=tmp_path, cache=cache, code=2)
    assert "model.initial_inner_lr is 'bad'" in wrong.stderr
    assert not list(tmp_path.iterdir())
    lists[-1] = "model.initial_inner_lr=0.1"
    done = run_cli("sweep", *lists, *SMALL, *TINY, "--test", cwd=tmp_path, cache=cache)
    assert "its test/acc" in done.stdout
    folder = tmp_path / "runs" / "maml_glyphs_5w1s_sweep"
    rows = read(folder / "trials.csv")
    assert [(row["state"], row["data.shots"]) for row in rows] == [("complete", "1"), ("complete", "2")]
    best = max(rows, key=lambda row: float(row["val/acc"]))
    assert f"shots: {best['data.shots']}" in (folder / "best.yaml").read_text()
    fitted = run_cli("fit", "--config", folder / "best.yaml", cwd=tmp_path, cache=cache)
    assert "maml_glyphs_5w1s_best" in fitted.stdout
    assert "test accuracy" in fitted.stdout


def test_a_sweep_of_a_bilevel_problem(tmp_path: Path, cache: Path) -> None:
    root = make_mnist(tmp_path / "data")
    words = ["sweep", "hyper_cleaning_mnist", "--set", "model.inner_lr=log:0.01..0.1", "--trials", "1", "--data.root", root,
             "--data.steps_per_epoch", "2", "--trainer.max_steps", "4", *ON_ONE_PROBLEM["hyper_cleaning_mnist"]]  # fmt: skip
    done = run_cli(*words, "--json", cwd=tmp_path, cache=cache)
    outcome = json.loads(done.stdout)
    assert outcome["direction"] == "max"
    assert 0.01 <= float(outcome["best"]["set"]["model.inner_lr"]) <= 0.1
    assert outcome["best"]["test"] is None
