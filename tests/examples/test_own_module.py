"""An example that the command line takes as a module of one's own. The gallery itself is run by ``tests/documents``."""

from __future__ import annotations

from pathlib import Path

import pytest

from metalearn.cli import main
from tests.cli.test_configs import TINY

GALLERY = Path(__file__).parents[2] / "examples" / "gallery"


def test_own_module_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(GALLERY))
    main(["fit", "--model", "own_module.Prototypes", "--data", "GlyphsDataModule", *TINY])
    summary = capsys.readouterr().out
    run = Path("runs/custom/version_0")
    assert "test accuracy" in summary
    assert str(run / "confusion.png") in summary
    assert (run / "confusion.png").is_file()
    assert str(run / "checkpoints/best.ckpt") in summary
