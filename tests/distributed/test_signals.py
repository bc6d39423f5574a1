"""A signal to any one of two processes ends both, after the same step, with one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.cli.test_configs import SMALL, TINY
from tests.made import run_cli


def test_a_signal_to_the_second_process_ends_both(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    done = run_cli(
        "fit", *SMALL, *TINY, "--data.train_tasks", 400, "--trainer.max_steps", 90,
        "--trainer.devices", 2, "--trainer.strategy", "ddp",
        "--trainer.callbacks+=tests.cli.ending_callbacks.SignalAt", "--trainer.callbacks.name", "SIGTERM",
        "--trainer.callbacks.where", "train", "--trainer.callbacks.step", 3, "--trainer.callbacks.rank", 1,
        cwd=tmp_path, cache=cache, code=143,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("metalearn: ")]
    assert line.startswith("metalearn: stopped by SIGTERM at step 3; go on with: python -m metalearn resume ")
    last = tmp_path / "runs/maml_glyphs_5w1s/version_0/checkpoints/last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 3
    assert "test accuracy" not in done.stdout
