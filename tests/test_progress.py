"""How far work is, in files and on terminals."""

from __future__ import annotations

import io
import time

import pytest

from metalearn.progress import Progress, follow, format_seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which passes where a test says so."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_a_file_gets_a_line_every_ten_seconds(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("packing [birds]", 100) as progress:
        for _ in range(50):
            clock[0] += 1.0
            progress.advance(2)
        progress.describe("done")
    lines = capsys.readouterr().out.splitlines()
    rests = ["20 % done, 40 s left", "40 % done, 30 s left", "60 % done, 20 s left", "80 % done, 10 s left"]
    assert lines == [f"packing [birds]: {rest}" for rest in rests]


def test_quick_work_says_nothing_in_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(follow("abc", "reading")) == ["a", "b", "c"]
    assert list(follow("", "reading")) == []
    assert capsys.readouterr().out == ""


def test_a_terminal_gets_a_bar_that_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with Progress("packing [birds]", 4) as progress:
        progress.advance(3)
    shown = terminal.getvalue()
    assert "packing [birds]" in shown
    assert " 75%" in shown
    assert "left" in shown
    assert shown.rstrip("\n").endswith("\x1b[2K")  # the line is erased


def test_an_error_in_between_ends_the_bar() -> None:
    with pytest.raises(ValueError, match="in between"), Progress("packing", 3):
        raise ValueError("in between")


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "0 s"), (59.6, "1:00"), (187.4, "3:07"), (7387, "2:03:07")])
def test_seconds(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text
