"""The help of the command line: short, as wide as the terminal, in the words of those who read it."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import lightning as L
import pytest

from metalearn.cli import main
from metalearn.cli.commands import COMMANDS
from metalearn.cli.screen import Option, Screen, Section, print_screen
from tests.algorithms import KINDS

SCREENS = [
    ["--help"], ["fit", "--help"], ["validate", "--help"], ["test", "--help"], ["predict", "--help"],
    ["predict", "--support", "x", "-h"], ["data", "--help"], ["study", "few_shot", "--help"], ["fit", "--model.help"],
    *(["fit", "--model.help", kind.__name__] for kind in KINDS), ["test", "--model.help", "HyperCleaning"],
    ["fit", "--model.help=RegularizationTuning"], ["fit", "--data.help"], ["fit", "--data.help", "OmniglotDataModule"],
    ["fit", "--model.backbone.help", "Conv4"], ["fit", "--model.help", "tests.cli.test_help.OwnModule"],
]  # fmt: skip
MARKS = ("never run on your", "Useful to", "main advantage", "<class", "most_ways", "``", ":class:", "METHODS", "Union[",
         "ways.help", "MetaModule", "see streams", "Lightning Trainer command line tool", "Optional[", "Literal",
         "usage: usage")  # fmt: skip
"""What belongs to the source code, and sentences that are cut."""


def print_help(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with contextlib.suppress(SystemExit):  # whatever is wrong is printed elsewhere
        main(args)
    return capsys.readouterr().out


@pytest.mark.parametrize("args", SCREENS, ids=" ".join)
def test_a_screen_fits_80_columns_and_is_written_for_users(
    args: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = print_help(args, capsys)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) < 120
    assert all(mark not in text for mark in MARKS)
    assert "\x1b" not in text
    if any(word.startswith("--model.help") for word in args):
        options = [line.split() for line in lines if line.startswith("  ") and line[2:3].isalpha()]
        assert not [words for words in options if words[1:2] and words[1][0] == "["]  # an option without a text


def test_the_overview_has_an_example_for_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    lines = print_help(["--help"], capsys).splitlines()
    assert len(lines) < 40
    assert {line.strip() for line in lines} >= {command.example for command in COMMANDS.values()}
    assert all(f"{command.example} ".startswith(f"metalearn {name} ") for name, command in COMMANDS.items())


@pytest.mark.parametrize(
    ("name", "first"),
    [("MAML", ["adapts", "adapter", "inner_steps", "inner_lr"]), ("ANIL", ["head", "head_solver"]), ("Pooled", ["inner_steps"]),
     ("IMAML", ["inner_steps", "inner_lr", "lam", "cg_steps"]), ("HyperCleaning", ["examples"])],
)  # fmt: skip
def test_the_help_of_a_class_begins_with_its_own_arguments(
    name: str, first: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = print_help(["fit", "--model.help", name], capsys).splitlines()
    names = [line.split()[0] for line in lines if line.startswith("  ") and line[2] != " "]
    assert names[: len(first)] == first
    assert len(lines) < 80


def test_types_are_plain_words_with_their_bounds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    text = " ".join(print_help(["fit", "--model.help", "MAML"], capsys).split())
    for part in ("[whole number >= 1; default 5]", "[number > 0; default 0.1]", "[number > 0]", "[default false]",
                 "[required; such as Conv4, MLP, ResNet12]", "[default Adam(lr=0.001); such as Adam, SGD, AdamW]"):  # fmt: skip
        assert part in text


def test_the_options_of_the_trainer_stand_behind_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert print_help(["fit", "--help"], capsys).count("--trainer.help") == 1
    text = print_help(["fit", "--trainer.help"], capsys)
    assert "accumulate_grad_batches" in text
    assert "Default: " not in text


def test_predict_shows_both_of_its_uses(capsys: pytest.CaptureFixture[str]) -> None:
    text = print_help(["predict", "--help"], capsys)
    assert all(
        f"--{name} " in text for name in ("support", "query", "output", "ckpt_path", "config", "data.test_tasks")
    )


def test_the_first_help_needs_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys, metalearn.cli as c\n"
        "for words in (['--help'], ['--version'], ['fti']):\n"
        "    try: c.main(words)\n"
        "    except SystemExit as end: print(end.code)\n"
        "print(sorted({'torch', 'lightning', 'jsonargparse', 'matplotlib', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]"
    versions = next(line for line in done.stdout.splitlines() if line.startswith("metalearn 0."))
    assert all(name in versions for name in ("torch 2.", "Lightning 2.", "Python 3."))
    assert done.stderr.count("\n") == 1


def test_a_screen_follows_narrow_terminals_and_colours_only_those_that_want_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    long = Option("--a_name_longer_than_its_column", "word " * 30)
    screen = Screen(
        "metalearn x", "word " * 40, [Section("Options", [Option("-x", "word " * 30), long])], ["word " * 20]
    )
    for width in (40, 60, 80, 200):
        assert max(map(len, screen.format(width).splitlines())) <= width
    monkeypatch.setenv("COLUMNS", "70")
    monkeypatch.setenv("FORCE_COLOR", "1")
    print_screen(screen)
    coloured = capsys.readouterr().out
    assert "\x1b[1m" in coloured
    monkeypatch.setenv("NO_COLOR", "1")
    print_screen(screen)
    assert capsys.readouterr().out == screen.format()


class OwnModule(L.LightningModule):
    """A module of one's own.

    Args:
        width: units in each layer.
    """

    def __init__(self, width: int = 3, note: str | None = None) -> None:
        super().__init__()
