"""A user who follows a tutorial: runs its commands, makes mistakes on the way, and looks at what there is to see."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.documents.blocks import Block, pages, read_blocks
from tests.documents.commands import split_commands
from tests.house import ROOT

NEEDS_NO_WALK = ("pip", "git", "cd", "python -m venv", "source", ".")
"""What a page's commands begin with that would change the environment: ``benchmarks/first_accuracy.sh`` runs them."""


@functools.cache
def documented() -> frozenset[str]:
    """Every command of the README and of the site, with one space between words."""
    blocks = (block for page in pages() for block in read_blocks(page) if block.language == "shell")
    return frozenset(" ".join(command.split()) for block in blocks for command in split_commands(block.text))


@dataclass
class Walk:
    """One user's walk.

    Attributes:
        folder: the user's folder, in which all commands run.
        page: the tutorial, by its name.
        transcript: the file to write what the user types and sees.
        cache: where packed images go.
    """

    folder: Path
    page: str
    transcript: Path
    cache: Path
    walked: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.transcript.write_text("")

    def run(self, command: str, budget: str = "") -> str:
        """Run a command of the documents, with options behind it that keep the work small; returns what it printed."""
        assert " ".join(command.split()) in documented(), f"no page says: {command}"
        self.walked.add(" ".join(command.split()))
        done = self._call(f"{command} {budget}".strip())
        assert done.returncode == 0, (
            f"exit code {done.returncode}: {command}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done.stdout

    def mistake(self, command: str, line: str) -> None:
        """Run a command that is wrong: its answer is one line on the error stream, which holds ``line``, and exit code 2."""
        before = self._list_files()
        done = self._call(command)
        assert done.returncode == 2, f"exit code {done.returncode}: {command}\n{done.stdout}{done.stderr[-3000:]}"
        assert done.stderr.startswith("metalearn: error: "), done.stderr
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert line in done.stderr, f"{line!r} is not in: {done.stderr}"
        assert not done.stdout, done.stdout
        assert self._list_files() == before, "a command that was wrong wrote files"

    def wrong_script(self, command: str, line: str) -> None:
        """Run a script that is wrong: the last line of its traceback is one of our errors, and holds ``line``."""
        done = self._call(command)
        assert done.returncode == 1, f"exit code {done.returncode}: {command}"
        last = done.stderr.rstrip().splitlines()[-1]
        assert last.startswith("metalearn.errors."), done.stderr[-3000:]
        assert line in last, last

    def change(self, name: str, before: str, after: str) -> None:
        """Write something else into a script, wherever it says ``before``."""
        text = (self.folder / name).read_text()
        assert before in text, f"{name} has no {before}"
        (self.folder / name).write_text(text.replace(before, after))
        self._note(f"(in {name}: {before} becomes {after})\n\n")

    def save(self, name: str, **changes: str) -> None:
        """Save the block of the page whose first line is a comment with this file name.

        ``**changes`` maps a name that the block sets (``STEPS``) to a smaller value.
        """
        (text,) = (block.text for block in self._blocks() if block.file_name == name)
        for setting, value in changes.items():
            lines = [line for line in text.splitlines() if line.startswith(f"{setting} = ")]
            assert len(lines) == 1, f"{name} sets {setting} in {len(lines)} lines"
            text = text.replace(lines[0], f"{setting} = {value}")
        (self.folder / name).write_text(text)
        self._note(f"(saves {name})\n\n")

    def look(self, path: str) -> None:
        """Look at a picture."""
        assert (self.folder / path).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n", path
        self._note(f"(looks at {path})\n\n")

    def left(self) -> list[str]:
        """The commands of the page that were not run."""
        blocks = (block for block in self._blocks() if block.language == "shell" and block.reason is None)
        commands = [
            " ".join(each.split()) for block in blocks if block.exit_code == 0 for each in split_commands(block.text)
        ]
        return [each for each in commands if each not in self.walked and not each.startswith(NEEDS_NO_WALK)]

    def _blocks(self) -> Iterator[Block]:
        return read_blocks(ROOT / "docs" / "tutorials" / f"{self.page}.md")

    def _list_files(self) -> list[Path]:
        return sorted(self.folder.rglob("*"))

    def _call(self, command: str) -> subprocess.CompletedProcess[str]:
        paths = [str(Path(sys.executable).parent), os.environ["PATH"]]
        own = {
            "PATH": os.pathsep.join(paths),
            "METALEARN_CACHE": str(self.cache),
            "COLUMNS": "80",
            "OMP_NUM_THREADS": "1",
        }
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder,
            env={**os.environ, **own},
            capture_output=True,
            text=True,
            timeout=900,
        )
        ending = f"(exit code {done.returncode})\n" if done.returncode else ""
        self._note(f"$ {command}\n{done.stderr}{done.stdout}{ending}\n")
        return done

    def _note(self, text: str) -> None:
        with self.transcript.open("a") as file:
            file.write(text)
