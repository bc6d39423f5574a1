"""The registry of statements: what each says of itself, and that the test that it names is there."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

from metalearn import bilevel, theory
from metalearn.errors import ConfigError
from metalearn.theory import Statement, statement, statement_table, statements
from tests.house import ROOT, parse

NAMES = [each.name for each in statements()]


@pytest.mark.parametrize("name", NAMES)
def test_a_statement_says_all_of_itself(name: str) -> None:
    of_name = statement(name)
    assert re.fullmatch(r"(Compute|Bound) [^.]*\.", of_name.states)
    assert of_name.formula
    assert re.search(r"\b(19|20)\d\d\b|derived here|thesis", of_name.source)
    assert list(of_name.symbols) == list(inspect.signature(of_name.function).parameters)
    assert all(text.endswith(".") for text in of_name.symbols.values())
    assert getattr(theory, name, None) is of_name.function or getattr(bilevel, name) is of_name.function
    assert of_name.formula in str(of_name)
    assert "`" not in str(of_name)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_verified_names_its_test(name: str) -> None:
    check = statement(name).check
    assert (statement(name).status == "verified") == (check is not None)
    if check is None:
        return
    file, _, function = check.partition("::")
    tree = parse(ROOT / file)
    (test,) = (part for part in tree.body if isinstance(part, ast.FunctionDef) and part.name == function)
    source = Path(ROOT / file).read_text()
    assert re.search(rf"\b{name}\(", source), f"{file} does not call {name}"
    assert test.name.startswith("test_")


def test_every_formula_of_the_room_is_a_statement() -> None:
    functions = {
        name
        for name in theory.__all__
        if getattr(getattr(theory, name), "__module__", "").rpartition(".")[2]
        in ("maml", "anil", "bilevel", "quadratics")
    }
    assert functions <= set(NAMES)


def test_a_derivation_without_a_test_is_not_verified() -> None:
    known = statement("pzobo_error")
    assert Statement(known.function).status == "derived here"
    assert Statement(statement("maml_inner_step").function).status == "recalled"


def test_the_table_is_markdown_and_data() -> None:
    table = statement_table()
    lines = str(table).splitlines()
    assert len(lines) == len(NAMES) + 2
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 5 for line in lines)
    assert [row["name"] for row in table.as_dict()["statements"]] == NAMES


def test_an_unknown_name_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"statement\(name='meta_smothness'\), but .*; use 'meta_smoothness'"):
        statement("meta_smothness")


def test_the_theory_notes_have_every_statement() -> None:
    """Each once, in a table that Sphinx makes of the registry."""
    page = (ROOT / "docs" / "background" / "theory.md").read_text()
    listed = [
        name.strip()
        for block in re.findall(r"\.\. statements::\n\n((?: {3}\w+\n)+)", page)
        for name in block.splitlines()
    ]
    assert sorted(listed) == sorted(NAMES)
