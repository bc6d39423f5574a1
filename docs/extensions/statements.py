"""The directives ``statements`` and ``bounds``: formulas of the theory beside their code and their check, and oracle calls."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from metalearn import theory
from metalearn.theory import Statement, complexity_table, statement

__all__ = ["Bounds", "Statements", "setup"]


class Statements(SphinxDirective):
    """Statements, each with its code, its formula, its check and its source. Each line of the content is the name of one."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """The list."""
        names = [line.strip() for line in self.content if line.strip()]
        return self.parse_text_to_nodes("\n".join(line for name in names for line in describe(statement(name))))


class Bounds(SphinxDirective):
    """The table of oracle calls of some settings, which its content lists line by line."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """The table."""
        settings = [line.strip() for line in self.content if line.strip()]
        rows = [
            [row["name"], row["calls"], join_source(row), row["status"]]
            for row in complexity_table().rows
            if row["setting"] in settings
        ]
        header = ("bound", "oracle calls", "source", "status")
        return self.parse_text_to_nodes("\n".join(write_table(header, rows, (22, 32, 32, 14))))


def join_source(row: Mapping[str, Any]) -> str:
    """The source of a row, and what its note adds to it."""
    note = row["note"] if row["note"] != row["calls"] else ""
    return f"{row['source']}; {note}" if note else row["source"]


def write_table(header: Sequence[str], rows: Sequence[Sequence[str]], widths: Sequence[int]) -> Iterator[str]:
    """The lines of a table in reStructuredText."""
    yield from (".. list-table::", "   :header-rows: 1", f"   :widths: {' '.join(map(str, widths))}", "")
    for row in (header, *rows):
        yield from (f"   {'* -' if place == 0 else '  -'} {cell}" for place, cell in enumerate(row))


def describe(known: Statement) -> Iterator[str]:
    """The lines of a statement in reStructuredText, as an entry of a list of definitions."""
    room = "metalearn.theory" if hasattr(theory, known.name) else "metalearn.bilevel"
    yield from (f":func:`~{room}.{known.name}`", f"   {known.states}", "", "   ::", "")
    yield from (f"      {line}" for line in re.sub(r";? (with|where) ", r"\n\1 ", known.formula).splitlines())
    yield ""
    if known.check is None:
        yield f"   *{known.status}*, not checked."
    else:
        file, _, test = known.check.partition("::")
        yield f"   *{known.status}* by ``{file}``: {test.removeprefix('test_').replace('_', ' ')}."
    yield from ("", f"   Source: {known.source}.", "")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directives."""
    app.add_directive("statements", Statements)
    app.add_directive("bounds", Bounds)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
