"""A run in another precision goes to its end: pictures and summary included."""

from __future__ import annotations

from pathlib import Path

import pytest

from metalearn.cli import main


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.parametrize("precision", ["64-true", "bf16-true"])
def test_a_fit_in_another_precision_ends_with_its_summary(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    main(
        f"fit --trainer.precision {precision} --model.inner_steps 1 --model.eval_inner_steps 1 --trainer.max_steps 2 "
        "--trainer.limit_val_batches 1 --trainer.val_check_interval 2 "
        "--data.train_tasks 8 --data.val_tasks 4 --data.test_tasks 4 --data.tasks_per_batch 4 --data.queries 2 "
        "--trainer.enable_progress_bar false --trainer.default_root_dir out".split()
    )
    said = capsys.readouterr().out
    assert "test accuracy" in said
    assert list(tmp_path.rglob("episode.png"))
    assert list(tmp_path.rglob("best.ckpt"))
