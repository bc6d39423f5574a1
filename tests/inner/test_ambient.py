"""What is ambient stands in one file, and is put back."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import metalearn
from metalearn.inner import own_kernels, recording, statistics
from metalearn.inner.ambient import Ambient, current

ROOT = Path(metalearn.__file__).parent
HOME = "inner/ambient.py"


def test_one_file_makes_context_variables() -> None:
    """Neither does any other keep values for a thread, which would be another way to the same trouble."""
    texts = {path.relative_to(ROOT).as_posix(): path.read_text() for path in ROOT.rglob("*.py")}
    assert [name for name, text in texts.items() if "ContextVar" in text or "threading.local" in text] == [HOME]


def test_every_field_is_documented_with_who_sets_and_who_reads_it() -> None:
    table = ast.get_docstring(ast.parse((ROOT / HOME).read_text())) or ""
    assert [field for field in Ambient.__annotations__ if f"``{field}``" not in table] == []


def test_changes_nest_and_are_put_back_whatever_happens() -> None:
    before = current()
    with own_kernels("conv"), recording(True), statistics(rows=3, step=2):
        inside = Ambient(frozenset(["conv"]), rows=3, step=2, recording=True)
        assert current() == inside
        with pytest.raises(ZeroDivisionError), own_kernels(), statistics():
            1 / (len(current().operators) + (current().rows or 0))
        assert current() == inside
    assert current() is before
