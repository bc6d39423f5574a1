"""Loggers that a user names beside the run's own: names, arguments, curves and pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import Namespace

from metalearn.cli import main
from metalearn.cli.run_loggers import join_loggers, name_loggers
from metalearn.modules.callbacks.run_log import RunLog
from tests.cli.test_configs import SMALL, TINY


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_tensorboard_has_curves_arguments_and_pictures_in_the_runs_folder() -> None:
    events = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="the extra `tensorboard` is not installed"
    )
    words = ["fit", *SMALL, *TINY, "--trainer.logger", "TensorBoardLogger", "--trainer.logger.save_dir", "runs"]
    main(words)
    main(words)
    for version in (0, 1):
        folder = Path(f"runs/maml_glyphs_5w1s/version_{version}")
        logged = events.EventAccumulator(str(folder))
        logged.Reload()
        tags = logged.Tags()
        assert {"episode", "inner_steps", "training"} <= set(tags["images"])
        assert {"train/loss", "val/acc", "test/acc"} <= set(tags["scalars"])
        assert logged.Images("episode")[0].width > 100
        assert (folder / "metrics.csv").is_file()
        config = yaml.safe_load((folder / "config.yaml").read_text())
        # another run may begin from it, and has a name of its own
        assert config["trainer"]["logger"]["init_args"]["version"] is None
    assert sorted(path.name for path in Path("runs/maml_glyphs_5w1s").iterdir()) == ["version_0", "version_1"]


def ask(kind: str, **arguments: Any) -> Namespace:
    return Namespace(class_path=f"lightning.pytorch.loggers.{kind}", init_args=Namespace(**arguments))


def test_names_of_runs_go_to_loggers_that_have_none() -> None:
    log = RunLog("runs", "mine", "version_3")
    asked = [
        ask("WandbLogger", name=None, save_dir="."), ask("WandbLogger", name="own", save_dir="x"),
        ask("MLFlowLogger", run_name=None), ask("MLFlowLogger", run_name="own"),
        ask("TensorBoardLogger", name="lightning_logs", version=None), ask("TensorBoardLogger", name="own", version=7),
        Namespace(class_path="some.Logger"),
    ]  # fmt: skip
    named = [vars(entry.init_args) for entry in name_loggers(asked, log)[:-1]]
    assert named == [
        {"name": "mine/version_3", "save_dir": "runs/mine/version_3"}, {"name": "own", "save_dir": "x"},
        {"run_name": "mine/version_3"}, {"run_name": "own"},
        {"name": "mine", "version": "version_3"}, {"name": "own", "version": 7},
    ]  # fmt: skip
    assert asked[0].init_args.name is None
    for plain in (None, True, False):
        assert name_loggers(plain, log) is plain


def test_the_runs_own_logger_stays() -> None:
    log, other = RunLog("runs", "mine", "version_3"), RunLog("x", "y", "z")
    assert join_loggers(None, log) == [log]
    assert join_loggers(other, log) == [other]
    assert join_loggers([True], log) == [log]
