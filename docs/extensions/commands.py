"""The directive ``commands``: every command of the command line, with the help that it prints."""

from __future__ import annotations

import contextlib
import io
import os
from unittest import mock

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from metalearn.cli import main
from metalearn.cli.commands import COMMANDS

WIDTH = "80"


class Commands(SphinxDirective):
    """A section for each command of the table: what it does, an example, and its help."""

    def run(self) -> list[nodes.Node]:
        """The sections."""
        return [self.make_section(name) for name in COMMANDS]

    def make_section(self, name: str) -> nodes.section:
        """The section of a command."""
        command = COMMANDS[name]
        section = nodes.section("", nodes.title("", name), ids=[name], names=[name])
        self.state.document.note_explicit_target(section)
        section += nodes.paragraph("", command.text)
        section += nodes.literal_block("", command.example, language="text")
        section += nodes.literal_block("", print_help(name), language="text")
        return section


def print_help(name: str) -> str:
    """What ``metalearn NAME --help`` prints on a page of eighty columns."""
    printed = io.StringIO()
    environment = {"COLUMNS": WIDTH, "NO_COLOR": "1"}
    with mock.patch.dict(os.environ, environment), contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        main([name, "--help"])
    return printed.getvalue().strip()


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("commands", Commands)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
