"""The diffs of the pages for contributors apply to this code, and what they add runs as the pages say."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.documents.blocks import Block, read_blocks
from tests.documents.commands import split_commands
from tests.house import ROOT
from tests.made import make_folder

pytestmark = pytest.mark.documents

PAGES = {page.stem: page for page in (ROOT / "docs" / "contributing").glob("*.md") if page.stem != "index"}
ELSEWHERE = ("datamodules", "configs", "checkpoints")
"""Packages that stand beside ``metalearn``, and are installed into it."""


def copy_checkout(to: Path) -> None:
    """Copy the files of this checkout that git knows or would add."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)
    for name in ELSEWHERE:  # as an installation has them
        (to / "metalearn" / name).symlink_to(to / name)


def apply_diffs(blocks: list[Block], at: Path) -> None:
    """Apply the diffs of a page, in order."""
    for block in blocks:
        if block.language == "diff":
            done = subprocess.run(["git", "apply", "-"], input=block.text, cwd=at, capture_output=True, text=True)
            assert done.returncode == 0, f"{block.place} does not apply: {done.stderr}"


def run_commands(blocks: list[Block], at: Path, here: Path) -> dict[str, str]:
    """What each command of a page prints: those of pytest run in the copy, others in a folder of the reader's."""
    environment = {**os.environ, "PYTHONPATH": str(at), "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    printed = {}
    for block in blocks:
        for command in split_commands(block.text) if block.language == "shell" else ():
            words = [str(here / "DIR") if word == "DIR" else word for word in shlex.split(command)]
            folder = at if words[0] == "pytest" else here
            done = subprocess.run(
                [sys.executable, "-m", *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=400
            )
            assert done.returncode == 0, f"{block.place}: {command}\n{done.stdout[-4000:]}\n{done.stderr[-3000:]}"
            printed[" ".join(words[:2])] = done.stdout
            if words[0] == "pytest":
                assert " passed" in done.stdout, done.stdout
    return printed


@pytest.mark.parametrize("name", PAGES)
def test_what_a_page_adds_works(name: str, tmp_path: Path) -> None:
    blocks = list(read_blocks(PAGES[name]))
    checkout, here = tmp_path / "checkout", tmp_path / "here"
    checkout.mkdir()
    here.mkdir()
    for file in make_folder(tmp_path / "made", classes=12, images=6).rglob("*.png"):
        (here / "DIR").mkdir(exist_ok=True)
        file.rename(here / "DIR" / f"{file.parent.name}_{file.name}")
    copy_checkout(checkout)
    apply_diffs(blocks, checkout)
    for command in ("check", "format --check"):
        subprocess.run([sys.executable, "-m", "ruff", *command.split(), "-q", "."], cwd=checkout, check=True)
    printed = run_commands(blocks, checkout, here)
    added = {"algorithm": "BOIL", "dataset": "NamedFileEpisodes"}[name]
    assert f"\n{added} " in printed["metalearn list"]
    assert "test accuracy" in printed["metalearn fit"]
