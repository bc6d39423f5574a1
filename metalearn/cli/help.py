"""Help texts: as wide as the terminal, in plain text, with the classes that a user means instead of all that torch has."""

from __future__ import annotations

import argparse
import re
import textwrap
from typing import Any

from jsonargparse import DefaultHelpFormatter
from torch import nn

from metalearn.cli.type_words import find_classes, list_names

__all__ = ["HelpFormatter"]

MOST_NAMES = 8
"""Names of foreign classes that stand for all."""
MODULE = re.compile(r":mod:`~?([\w.]+)`")
ROLE = re.compile(r":\w+:`~?(?:[\w.]+\.)?(\w+)(?:<[^>`]*>)?`")
"""A reference in a docstring, such as to a class; of a module the whole name is needed."""
CUT = re.compile(r"(?<=\.) [A-Z][^.]* (?:a|and|is|of|the|to|your)$")
"""A last sentence that a sentence cannot end like."""
CLASS = re.compile(r"<class '(?:[\w.]+\.)?(\w+)'>")


class HelpFormatter(DefaultHelpFormatter):
    """jsonargparse's help, which lists every known subclass, hundreds for a network, and leaves the marks of docstrings."""

    def start_section(self, heading: str | None) -> None:
        """Begin a group, whose heading argparse would not break."""
        super().start_section(textwrap.fill(_write_plain(heading), self._width) if heading else heading)

    def _format_text(self, text: str) -> str:
        return str(super()._format_text(_write_plain(text)))

    def _get_help_string(self, action: argparse.Action) -> str:
        text = str(super()._get_help_string(action))
        every: Any = getattr(action, "extra_help", str)()
        text = text.replace(every, _choose_classes(getattr(action, "_typehint", None))) if every else text
        return _write_plain(text)


def _choose_classes(hint: Any) -> str:
    """Our classes of a type; where there are none, some of torch's and Lightning's."""
    classes = find_classes(hint)
    if nn.Module in classes and hint is not nn.Module:  # such as a loss, which no backbone can be
        return ""
    ours, others = list_names(classes)
    names = ours or others[:MOST_NAMES]
    return f", classes: {', '.join(names)}, or any other by its full name" if names else ""


def _write_plain(text: str) -> str:
    """A text without the marks of docstrings, and without a sentence whose end stands on the docstring's next line."""
    text = CLASS.sub(r"\1", ROLE.sub(r"\1", MODULE.sub(r"\1", text))).replace("``", "")
    return CUT.sub("", text)
