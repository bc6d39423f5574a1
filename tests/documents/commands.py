"""Runs a shell block of a page: its ``metalearn`` commands in this process, on made data."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from metalearn.cli import main
from tests.cli.test_configs import ON_ONE_PROBLEM
from tests.house import ROOT

SMALL = ON_ONE_PROBLEM
"""What is added to a command with one of these configurations, whose made data are small."""
ELSEWHERE = {
    "pip": "it would change the environment; the extras that it names are looked up",
    "git": "it would change the checkout",
    "cd": "pages are read from one folder",
    "export": "a setting of the reader's shell",
    "source": "a setting of the reader's shell",
    "eval": "a setting of the reader's shell",
    "torchrun": "tests/distributed starts several processes",
    "srun": "it needs a cluster",
    "sbatch": "it needs a cluster",
}
"""Programs that are not run, and why."""


@dataclass
class Shell:
    """Runs the commands of one page, one after the other.

    Attributes:
        folder: the working folder.
        data: makes the data that ``DIR`` stands for, by a part of the name that a command has for them.
        setenv: sets a variable of the environment until the page ends.
    """

    folder: Path
    data: Mapping[str, Callable[[], Path]]
    monkeypatch: pytest.MonkeyPatch
    left: list[str] = field(default_factory=list)

    def run(self, text: str, exit_code: int = 0) -> None:
        """Run every command of a block; what a program that is not ours would do is left."""
        for command in split_commands(text):
            self.run_command(command, exit_code)

    def run_command(self, command: str, exit_code: int = 0) -> None:
        words = shlex.split(command)
        while words and (setting := re.fullmatch(r"([A-Z_]+)=(.*)", words[0])):
            self.monkeypatch.setenv(setting[1], setting[2])
            words = words[1:]
        if words[:3] == ["python", "-m", "metalearn"]:
            words = ["metalearn", *words[3:]]
        if words[0] == "metalearn":
            self.place_data(command)
            self.call(words[1:], exit_code)
        else:
            self.leave(words)

    def call(self, args: list[str], exit_code: int) -> None:
        """Run the command line in this process."""
        code: object = 0
        small = next((options for name, options in SMALL.items() if name in args), [])
        try:
            main([*args, *small])
        except SystemExit as end:
            code = end.code or 0
        assert code == exit_code, f"exit code {code}: metalearn {shlex.join(args)}"

    def leave(self, words: list[str]) -> None:
        """Look at a command that is not run: whether it is one that may be left, and what it names exists."""
        if words[0] == "pip":
            check_extras(" ".join(words))
        elif words[0] == "python" and len(words) > 1 and words[1].endswith(".py"):
            assert (self.folder / words[1]).is_file() or (ROOT / words[1]).is_file(), f"there is no {words[1]}"
        elif words[0] == "pytest" or words[:2] == ["python", "-m"]:
            pass
        else:
            assert words[0] in ELSEWHERE, f"{shlex.join(words)}: say in the page why it is not run"
        self.left.append(shlex.join(words))

    def place_data(self, text: str) -> None:
        """Let ``DIR`` be a folder of the data that a command or program speaks of."""
        if not re.search(r"\bDIR\b", text):
            return
        link = self.folder / "DIR"
        link.unlink(missing_ok=True)
        made = next((make for name, make in self.data.items() if name in text.lower()), None)
        assert made is not None, f"{text}: which data stand in DIR?"
        link.symlink_to(made())


def split_commands(text: str) -> Iterator[str]:
    """The commands of a block. Where it has prompts, the lines without one are output."""
    lines = text.replace("\\\n", " ").splitlines()
    if any(line.startswith("$ ") for line in lines):
        lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    for line in lines:
        bare = re.sub(r"(^|\s)#.*", "", line).strip()
        yield from (part.strip() for part in bare.split("&&") if part.strip())


def check_extras(command: str) -> None:
    """Check that the extras which a ``pip install`` names are ours."""
    extras = re.search(
        r"^\[project.optional-dependencies\]\n(.*?)^\[", (ROOT / "pyproject.toml").read_text(), re.M | re.S
    )
    assert extras
    known = set(re.findall(r"^(\w+) = \[", extras[1], re.MULTILINE))
    for names in re.findall(r"(?:\.|metalearn-lightning)\[([\w,]+)\]", command):
        assert set(names.split(",")) <= known, f"{command}: the extras are {sorted(known)}"
