"""What every script of the galleries has, and that it runs as it stands."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.documents.gallery import BUDGET, SCRIPTS, names, shorten

pytestmark = pytest.mark.documents

LONGEST = {"gallery": 130, "bilevel": 195}
"""Lines that a script may have. A bilevel one says what a paper says, too."""

every_script = pytest.mark.parametrize("script", SCRIPTS, ids=names(SCRIPTS))


@every_script
def test_a_page_begins_with_a_title_and_a_line_that_says_what_is_shown(script: Path) -> None:
    text = ast.get_docstring(ast.parse(script.read_text())) or ""
    title, underline, empty, line, *_ = text.splitlines()
    assert underline == "=" * len(title)
    assert not empty
    assert line.endswith(".")
    assert len(line) <= 130


@every_script
def test_it_writes_one_picture_that_has_its_name(script: Path) -> None:
    assert re.findall(r'savefig\("(.+)"\)', script.read_text()) == [f"{script.stem}.png"]


@every_script
def test_it_is_small_and_says_its_budgets(script: Path) -> None:
    code = script.read_text()
    assert len(code.splitlines()) <= LONGEST[script.parent.name]
    constants = re.findall(r"^([A-Z][A-Z_]+) = (?:\d|\[)", code, re.MULTILINE)
    assert constants == [name for name, _, _ in BUDGET.findall(code)]


def test_every_script_has_its_place_in_the_order_of_pages() -> None:
    order = pytest.importorskip("reading_order").ORDER
    assert sorted(order) == sorted(names(SCRIPTS))


@pytest.mark.parametrize("name", ["hypergradient_error", "own_data"])
def test_it_runs_as_a_script(name: str, tmp_path: Path) -> None:
    """The others run as notebooks, with the same code."""
    (script,) = (script for script in SCRIPTS if script.stem == name)
    (tmp_path / script.name).write_text(shorten(script.read_text()))
    done = subprocess.run([sys.executable, script.name], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / f"{name}.png").is_file()
