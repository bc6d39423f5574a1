"""A bilevel problem on two gloo processes against one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from tests.distributed.bilevel import main

ROOT = Path(__file__).parents[2]


def reports(folder: Path, devices: int, name: str) -> list[dict[str, Any]]:
    if devices == 1:
        with warnings.catch_warnings(), torch.random.fork_rng():
            main(folder, 1, name)
        return [json.loads((folder / "rank0of1.json").read_text())]
    done = subprocess.run(
        [sys.executable, "-m", "tests.distributed.bilevel", str(folder), str(devices), name],
        cwd=ROOT, capture_output=True, text=True, timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"rank{rank}of{devices}.json").read_text()) for rank in range(devices)]


def test_two_ranks_solve_the_union_of_their_tasks(tmp_path: Path) -> None:
    """2 x 2 tasks are 4 tasks, up to rounding: x, each task's y, and the calls; each rank's y is in the checkpoint."""
    (one,), pair = reports(tmp_path, 1, "tasks"), reports(tmp_path, 2, "tasks")
    assert pair[0]["x"] == pair[1]["x"]
    torch.testing.assert_close(torch.tensor(pair[0]["x"]), torch.tensor(one["x"]), rtol=1e-6, atol=1e-6)
    for rank in (0, 1):
        torch.testing.assert_close(torch.tensor(pair[rank]["y"]), torch.tensor(one["y"])[rank::2], rtol=1e-6, atol=1e-6)
    assert pair[0]["counts"] == pair[1]["counts"] == one["counts"]
    saved = torch.load(tmp_path / "of2.ckpt", weights_only=True)["metalearn"]["bilevel"]
    torch.testing.assert_close(saved["state"]["y"][0][1].float(), torch.tensor(pair[1]["y"]))


def test_ranks_draw_their_own_batches_of_one_problem_and_share_its_state(tmp_path: Path) -> None:
    """Of one problem, x and y stay the same on both ranks, and are not those of one rank's batches."""
    (one,), pair = reports(tmp_path, 1, "mrbo"), reports(tmp_path, 2, "mrbo")
    assert pair[0]["x"] == pair[1]["x"]
    assert pair[0]["y"] == pair[1]["y"]
    assert pair[0]["seed"] == one["seed"] != pair[1]["seed"]
    assert pair[0]["x"] != one["x"]
    assert pair[0]["counts"] == {name: 2 * count for name, count in one["counts"].items()}


def test_a_two_rank_few_shot_step_is_the_step_on_all_tasks(tmp_path: Path) -> None:
    (one,), pair = reports(tmp_path, 1, "few_shot"), reports(tmp_path, 2, "few_shot")
    assert pair[0]["x"] == pair[1]["x"]
    assert pair[0]["counts"] == pair[1]["counts"] == one["counts"]
    torch.testing.assert_close(torch.tensor(pair[0]["x"]), torch.tensor(one["x"]), rtol=1e-3, atol=1e-4)
