"""What goes to standard output with --json and --quiet, and what else goes where."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from metalearn.cli import main
from metalearn.cli.output import Output, take_output
from metalearn.errors import ConfigError
from metalearn.reports.outcome import Fact
from metalearn.reports.summary import Summary

DATA = ["data", "info", "--data", "SinusoidDataModule", "--data.shots", "3"]


def test_a_command_prints_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    main(["data", "--json", *DATA[1:]])
    document = json.loads(capsys.readouterr().out)
    assert document["command"] == "data info"
    assert document["data"] == "SinusoidDataModule"
    assert document["task"]["support"] == {"x": [3, 1], "y": [3, 1]}


def test_a_quiet_command_prints_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    main([*DATA, "--quiet"])
    said = capsys.readouterr()
    assert said.out == "a task: support x [3, 1], y [3, 1], query x [10, 1], y [10, 1]\n"
    assert not said.err


@pytest.mark.parametrize("option", ["--json", "--quiet"])
def test_an_error_leaves_standard_output_empty(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*DATA[:-1], "0", option])
    assert stopped.value.code == 2
    said = capsys.readouterr()
    assert not said.out
    assert said.err.splitlines() == [said.err.strip()]
    assert said.err.startswith("metalearn: error: shots is 0")


@pytest.mark.parametrize(
    ("words", "rest", "output"),
    [
        (["fit", "--json", "--debug"], ["fit"], Output(json=True)),
        (["--quiet", "fit", "--json"], ["fit"], Output(json=True, quiet=True)),
        (["fit", "--json", "--help"], ["fit", "--help"], Output()),
        (["fit", "--quiet", "--model.help", "MAML"], ["fit", "--model.help", "MAML"], Output()),
        (["fit", "--json", "--print_config=skip_null"], ["fit", "--print_config=skip_null"], Output()),
    ],
)
def test_options_are_taken_wherever_they_stand(words: list[str], rest: list[str], output: Output) -> None:
    assert take_output(words) == (rest, output)


def test_an_option_without_a_value_takes_none() -> None:
    with pytest.raises(ConfigError, match="--json takes no value, but --json=false gives it one; write --json"):
        take_output(["fit", "--json=false"])


def test_libraries_are_silent_in_a_quiet_command(capsys: pytest.CaptureFixture[str]) -> None:
    with Output(quiet=True).directed():
        print("progress")
        warnings.warn("of a library", UserWarning)
    Output(quiet=True).say(Summary("", [Fact("accuracy", "90 %")]))
    assert capsys.readouterr() == ("accuracy: 90 %\n", "")


def test_what_started_processes_print_is_no_part_of_the_document(tmp_path: Path) -> None:
    """Nor what C code prints: the descriptor itself is turned."""
    code = (
        "import os, subprocess, sys\n"
        "from metalearn.cli.output import Output\n"
        "from metalearn.reports.outcome import Fact\n"
        "from metalearn.reports.summary import Summary\n"
        "output = Output(json=True)\n"
        "with output.directed():\n"
        "    print('printed')\n"
        "    os.write(1, b'written\\n')\n"
        "    subprocess.run([sys.executable, '-c', 'print(\"of a process\")'], check=True)\n"
        "output.say(Summary('', [Fact('a', 'b', {'loss': float('nan')})]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {"loss": None}
    assert sorted(done.stderr.splitlines()) == ["of a process", "printed", "written"]
