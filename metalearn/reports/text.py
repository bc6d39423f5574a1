"""Names of files and classes as they can be shown."""

from __future__ import annotations

import re

__all__ = ["escape_for_figure", "escape_unprintable", "join_lines"]


def escape_unprintable(text: str) -> str:
    """The text with every character that a terminal would obey instead of print written out; line breaks stay."""
    return "".join(
        each if each.isprintable() or each == "\n" else each.encode("unicode_escape", "surrogatepass").decode()
        for each in text
    )


def escape_for_figure(text: str) -> str:
    """The text on one line, without what matplotlib takes for a formula."""
    return escape_unprintable(text.replace("\n", " ")).replace("$", r"\$")


def join_lines(text: str) -> str:
    """The text without line breaks, and with every character that a terminal would not print written out."""
    return escape_unprintable(re.sub(r"\s+", " ", text).strip())
