"""Two gloo processes on the CPU against one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.run import MAKERS, train

ROOT = Path(__file__).parents[2]


def launch(folder: Path, devices: int, test_tasks: int, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.distributed.run", str(folder), str(devices), str(test_tasks), *more],
        cwd=ROOT, capture_output=True, text=True, timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def reports(folder: Path, devices: int, test_tasks: int) -> list[dict[str, Any]]:
    done = launch(folder, devices, test_tasks)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"rank{rank}of{devices}.json").read_text()) for rank in range(devices)]


@pytest.mark.parametrize("test_tasks", [60, 61, 7])
def test_two_ranks_report_what_one_reports(test_tasks: int, tmp_path: Path) -> None:
    """For an even and for an odd number of tasks (training left out, so that both test the same weights); and after training."""
    if test_tasks > 50:
        (single,), pair = reports(tmp_path, 1, test_tasks), reports(tmp_path, 2, test_tasks)
        single_table = single["test"]
        assert all(rank["test"] == single_table for rank in pair)
    else:
        pair = reports(tmp_path, 2, test_tasks)
        assert json.dumps(pair[0]["test"]) == json.dumps(pair[1]["test"])
    tested = [[index for split, index in rank["drawn"] if split == "test"] for rank in pair]
    assert sorted(tested[0] + tested[1]) == list(range(test_tasks))
    rows = (tmp_path / "test_tasks.csv").read_text().splitlines()
    assert [int(row.split(",")[0]) for row in rows[1:]] == list(range(test_tasks))
    if test_tasks > 50:
        return
    trained = [[index for split, index in rank["drawn"] if split == "train"] for rank in pair]
    assert not set(trained[0]) & set(trained[1])
    assert sorted(trained[0] + trained[1]) == list(range(64))  # two epochs of 32 tasks, none twice
    torch.testing.assert_close(pair[0]["weights"], pair[1]["weights"], rtol=0, atol=0)


def test_two_ranks_train_as_one_does_on_all_tasks(tmp_path: Path) -> None:
    """8 tasks on one rank and 2 x 4 tasks give the same weights, and log the same numbers, up to rounding."""
    done = launch(tmp_path, 2, 7, "algorithms")
    assert done.returncode == 0, done.stderr[-3000:]
    pair = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    for name in MAKERS:
        alone, first, second = train(name, 1, tmp_path), pair[0][name], pair[1][name]
        assert first["weights"] == second["weights"], name
        assert first["logged"] == second["logged"] == pytest.approx(alone["logged"], rel=1e-3), name
        torch.testing.assert_close(first["weights"], alone["weights"], rtol=1e-3, atol=1e-4)
        assert first["factors"] == second["factors"] == pytest.approx(alone["factors"], rel=1e-3), name
    halved = [line for line in done.stderr.splitlines() if "memory has run out" in line]
    assert len(halved) == 1  # each rank alone, since nothing is exchanged within a step
    assert "[rank 1] MAML: memory has run out with 4 at once" in halved[0]
    (factor,) = pair[0]["advised"]["factors"]
    assert factor > 10  # both take what the first rank's first task asks for, which is also the first of one rank alone


def test_fewer_tasks_than_ranks_are_refused(tmp_path: Path) -> None:
    done = launch(tmp_path, 2, 1)
    assert done.returncode != 0
    assert "test_tasks is 1, but there are 2 ranks" in done.stderr


def test_a_diverging_pair_stops_instead_of_hanging(tmp_path: Path) -> None:
    done = launch(tmp_path, 2, 7, "poison")
    assert done.returncode != 0
    assert "smaller inner_lr" in done.stderr
