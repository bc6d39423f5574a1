"""The help of the command line on a narrow terminal."""

from __future__ import annotations

import pytest

from metalearn.cli import main


def print_help(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as end:
        main(args)
    assert end.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("columns", [80, 120])
def test_the_help_of_a_class_fits_the_terminal(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    text = print_help(["fit", "--model.help", "ANIL"], capsys)
    lines = text.splitlines()
    assert max(len(line) for line in lines if " --model" not in line) <= columns
    assert "usage" not in text
    assert "`" not in text
    plain = " ".join(text.split())
    assert "classes: Conv4, MLP, ResNet12, or any other by its full name" in plain
    assert len(lines) < 200  # and not every class of torch's


def test_the_help_of_a_subcommand_begins_with_its_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert print_help(["fit", "--help"], capsys).startswith("usage: metalearn")


@pytest.mark.parametrize(
    "args", [["--help"], ["fit", "--help"], ["test", "--help"], ["fit", "--model.help", "BilevelModule"],
             ["study", "hyper_cleaning", "--help"], ["study", "newsgroups", "--help"]],
)  # fmt: skip
def test_the_help_is_written_for_users(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """No sentence is cut, and no name of the source code or mark of a docstring is left."""
    text = " ".join(print_help(args, capsys).split())
    for wrong in ("never run on your", "Useful to", "main advantage", "<class 'lightning", "_most_ways", "``", ":class:",
                  "METHODS", "MetaModule", "see streams", "Lightning Trainer command line tool"):  # fmt: skip
        assert wrong not in text, wrong
