"""The GPU benchmark's command, in small and on a CPU: every part ends, and leaves its numbers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


def run(folder: Path, *arguments: str) -> tuple[str, dict[str, Any]]:
    """What it prints, and its numbers."""
    done = subprocess.run(
        [sys.executable, "benchmarks/gpu.py", "--device", "cpu", "--toy", "--output", str(folder), *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=240, env={**os.environ, "PYTHONPATH": ".", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout, json.loads((folder / "results.json").read_text())


@pytest.mark.long
def test_every_part_runs(tmp_path: Path) -> None:
    parts = ("check", "time", "profile", "count")
    rows = ("recorded, tf32", "patches", "fastest", "bf16", "vmap")
    said, values = run(
        tmp_path, "--works", "one_step", "--rounds", "1", "--burst", "1", "--rows", *rows, "--parts", *parts
    )
    assert "failed" not in said
    assert {*parts, "seconds", "machine", "built"} == values.keys()
    errors = {name: value for name, value in values["check"].items() if name != "guard"}
    assert errors.keys() == {
        f"one_step: {name}" for name in ("patches", "fastest", "bf16", "torch.func vmap, norm by hand")
    }
    assert all(value < 1e-9 or "bf16" in name for name, value in errors.items())  # 8 bits are few in so small a network
    assert values["check"]["guard"].startswith("weights kept: True; query.x of task 1 ")
    assert all(row["ms"] > 0 for row in values["time"].values())
    assert values["profile"]["one_step: ours"]["kernels"] > 100
    assert values["count"]["one_step: patches"]["operators"] > 100


@pytest.mark.long
def test_the_long_run_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    for iterations in ("4", "6"):
        said, values = run(tmp_path, "--parts", "run", "--iterations", iterations)
        assert values["run"]["5w1s"]["steps"] == int(iterations), said
    assert 0 <= values["run"]["5w1s"]["accuracy"] <= 1
