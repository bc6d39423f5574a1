"""Every example runs, and learns."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from metalearn.cli import main
from tests.cli.test_configs import SMALL, TINY
from tests.made import run_cli

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def test_own_datamodule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load("own_datamodule").main(max_steps=150) > 0.6  # chance is a third


def test_own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load("own_module").main(max_steps=30, test_tasks=50) > 0.5  # chance is a fifth


def test_own_module_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    main(["fit", "--model", "own_module.Prototypes", "--data", "GlyphsDataModule", *TINY])
    summary = capsys.readouterr().out
    run = Path("runs/custom/version_0")
    assert "test accuracy" in summary
    assert str(run / "confusion.png") in summary
    assert (run / "confusion.png").is_file()
    assert str(run / "checkpoints/best.ckpt") in summary


def test_torchvision_backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load("torchvision_backbone").main(max_steps=8, test_tasks=20) > 0.4  # chance is a fifth


def test_adapt_from_checkpoint(tmp_path: Path, cache: Path) -> None:
    run_cli("fit", *SMALL, *TINY, cwd=tmp_path, cache=cache)
    assert (
        load("adapt_from_checkpoint").main(str(tmp_path / "runs/maml_glyphs_5w1s/version_0/checkpoints/best.ckpt"))
        >= 0.0
    )
