"""An adapter of a user's own on the command line, and where such classes are looked for."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from metalearn.cli import main
from metalearn.early_signals import ENDING
from tests.cli.test_own_classes import HERE, RUN

CONFIG = {
    "model": {
        "class_path": "MAML",
        "init_args": {
            "backbone": {"class_path": "metalearn.MLP", "init_args": {"inputs": 4, "outputs": 3}},
            "adapter": {"class_path": "tests.modules.training.test_own_parts.Shift", "init_args": {"scale": 2.0}},
            "inner_steps": 1,
        },
    },
    "data": {"class_path": f"{HERE}.PointsToTest"},
}


def test_an_adapter_is_tested_and_goes_on_by_the_runs_own_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(yaml.safe_dump(CONFIG))
    main(["fit", "--config", "mine.yaml", *RUN])
    run = Path("runs/mine/version_0")
    saved = ["--config", str(run / "config.yaml"), "--ckpt_path", str(run / "checkpoints" / "last.ckpt")]
    main(["test", *saved])
    main(["fit", *saved, "--trainer.max_steps", "4"])
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main(["test", *saved[2:]])
    assert end.value.code == 2
    assert "which is not built from a file unasked; add --config" in capsys.readouterr().err


@pytest.fixture
def own_signals() -> Iterator[None]:
    """A command without words of its own is the whole process: it lets signals end this one, and tests to come send some."""
    before = {signum: signal.getsignal(signum) for signum in ENDING}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.mark.usefixtures("own_signals")
def test_the_working_folder_is_known_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parser of a config goes to the config's folder, and classes are where the command was given."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "argv", ["metalearn", "list", "models"])
    main()
    assert str(tmp_path) in sys.path
