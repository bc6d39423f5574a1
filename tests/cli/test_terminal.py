"""Terminals without our characters, outputs that are closed or full, and working folders that cannot be used."""

from __future__ import annotations

import io
import logging
import os
import re
import sys
import warnings
from pathlib import Path

import pytest

from metalearn.cli import main
from metalearn.cli.terminal import HeldMessages, describe_os_error, plain_output
from metalearn.reports.outcome import Fact
from metalearn.reports.summary import Summary


def test_an_ascii_terminal_gets_spelled_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    with plain_output():
        Summary(
            "a run", [Fact("test accuracy", "37.69 % \u00b1 1.04"), Fact("file", "\u00fc\udcff\x1b[31m.png")]
        ).show()
        stream.flush()
    text = written.getvalue().decode("ascii")
    assert "37.69 % +/- 1.04" in text
    assert "\\xfc\\udcff\\x1b[31m.png" in text
    assert stream.errors == "strict"


def test_a_closed_stdout_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    with plain_output():
        print("into the void")


class _Closed(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


def test_a_reader_that_goes_away_ends_the_command_quietly(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", _Closed())
    with pytest.raises(SystemExit) as stopped:
        main(["study"])
    assert stopped.value.code == 141
    assert not capfd.readouterr().err


def test_a_working_folder_that_is_gone_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                  capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    with pytest.raises(SystemExit) as stopped:
        main(["fit"])
    monkeypatch.undo()
    assert stopped.value.code == 2
    assert (
        capsys.readouterr().err
        == "metalearn: error: the working folder does not exist any more; change to one that does\n"
    )


@pytest.mark.parametrize("where", ["file/runs", "/proc/nowhere", "x" * 300])
def test_a_place_that_cannot_be_written_is_one_line(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                    capfd: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--trainer.default_root_dir", where, "--trainer.max_steps", "1", "--model.backbone.hidden", "4"])
    assert stopped.value.code == 2
    err = capfd.readouterr().err
    assert err.startswith("metalearn: error: ")
    assert err.count("\n") == 1
    assert re.search("cannot be (used|written)", err)
    assert os.listdir() == ["file"]


def test_what_is_no_matter_of_files_is_not_told_as_one() -> None:
    assert describe_os_error(OSError("no number at all")) is None
    assert "shorten it" in str(describe_os_error(OSError(36, os.strerror(36), "x" * 300))) or sys.platform != "linux"


def test_messages_are_held_until_a_run_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[object] = []
    monkeypatch.setattr(warnings, "showwarning", lambda text, *_: shown.append(text))
    logger = logging.getLogger("lightning.pytorch")
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    logger.addHandler(handler)
    try:
        for drop, expected in ((False, "one\ntwo\n"), (True, "")):
            held = HeldMessages()
            held.hold()
            logger.warning("one")
            warnings.showwarning("odd", UserWarning, "file.py", 1)
            logger.warning("two")
            assert written.getvalue() == ""
            assert not shown
            held.release(drop)
            assert written.getvalue() == expected
            assert shown == ([] if drop else ["odd"])
            shown.clear()
            logger.warning("three")
            assert written.getvalue() == expected + "three\n"
            written.truncate(0)
            written.seek(0)
    finally:
        logger.removeHandler(handler)
