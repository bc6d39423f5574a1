"""How many processes a run has, and how its steps are shown."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import lightning as L
import pytest
import rich
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar, TQDMProgressBar

from metalearn import ConfigError
from metalearn.cli import main
from metalearn.cli.processes import take_torchrun
from metalearn.modules.callbacks.progress import show_progress
from tests.cli.test_configs import SMALL, TINY


@pytest.fixture
def torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of one of two processes on each of two machines."""
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("torchrun")
def test_torchrun_says_how_many_processes_there_are() -> None:
    asked = {"devices": "auto", "num_nodes": 1, "strategy": "auto"}
    assert take_torchrun(asked) == {"devices": 2, "num_nodes": 2, "strategy": "ddp"}
    assert take_torchrun({**asked, "devices": "2", "strategy": "ddp_spawn"}) == {"devices": 2, "num_nodes": 2}
    for name, told in (("devices", "2 processes on this machine"), ("num_nodes", "2 machines")):
        with pytest.raises(ConfigError, match=f"trainer.{name} is 3, but torchrun has started {told}"):
            take_torchrun({**asked, name: 3})


def test_without_torchrun_nothing_follows() -> None:
    assert take_torchrun({"devices": "auto", "num_nodes": 1, "strategy": "auto"}) == {}


class Custom(RichProgressBar):
    """A user's own bar."""


@pytest.fixture
def _console() -> Iterator[None]:
    """Puts rich's console back when the test ends."""
    yield
    rich.reconfigure()


@pytest.mark.usefixtures("_console")
def test_bars_count_steps_and_are_lines_in_files() -> None:
    custom, other = Custom(), L.Callback()
    shown = show_progress([RichProgressBar(), other, TQDMProgressBar(), custom])
    assert [type(each).__name__ for each in shown] == ["ProgressLines", "Callback", "ProgressLines", "Custom"]
    rich.reconfigure(file=io.StringIO(), force_terminal=True)
    shown = show_progress([RichProgressBar(leave=True), TQDMProgressBar(), custom])
    assert [type(each).__name__ for each in shown] == ["StepProgressBar", "PlainStepProgressBar", "Custom"]


@pytest.mark.usefixtures("_console")
@pytest.mark.parametrize("bar", [RichProgressBar, TQDMProgressBar])
def test_a_bar_shows_the_step_of_how_many(
    bar: type[ProgressBar], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    screen = io.StringIO()
    rich.reconfigure(file=screen, force_terminal=True, width=200)
    arguments = [each for each in TINY if each not in ("--trainer.enable_progress_bar", "false")]
    main(["fit", *SMALL, *arguments, "--test_after_fit", "false", "--trainer.callbacks+", bar.__name__])
    captured = capsys.readouterr()
    text = screen.getvalue() + captured.out + captured.err
    assert "2/2" in text.split("step", 1)[1]
    assert "/-2" not in text
    assert "v_num" not in text
