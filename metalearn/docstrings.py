"""The texts of arguments in the docstrings of algorithms and data sets, which the command line's help reads."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Mapping

__all__ = ["complete_docstring", "read_arguments"]

WIDTH = 120
HEADING = "Args:"


def complete_docstring(kind: type, texts: Mapping[str, str]) -> None:
    """Describe every argument of a class's constructor in its docstring.

    Args:
        kind: a class. What its own docstring says of an argument stays.
        texts: what its options say of themselves. Other arguments have the text of the class that ``kind`` derives from.
    """
    known = dict(texts)
    for base in reversed(kind.__mro__[1:]):
        known |= {name: text for name, text in read_arguments(base.__doc__ or "").items() if name not in texts}
    own = vars(kind).get("__doc__") or ""
    known |= read_arguments(own)
    names = [name for name in inspect.signature(kind).parameters if name in known]
    if not names:
        return
    before, after = _split(own)
    parts = [before, _format({name: known[name] for name in names}), after]
    kind.__doc__ = "\n\n".join(part for part in parts if part) + "\n"


def read_arguments(docstring: str) -> dict[str, str]:
    """What a docstring says of each argument, by its name."""
    texts: dict[str, str] = {}
    name = ""
    for line in _section(inspect.cleandoc(docstring).splitlines())[1:]:
        entry = re.match(r" {4}(\w+): ?(.*)", line)
        if entry:
            name = entry[1]
            texts[name] = entry[2]
        elif name and line.strip():
            texts[name] += " " + line.strip()
    return texts


def _section(lines: list[str]) -> list[str]:
    """The lines of the arguments' section, its heading first."""
    if HEADING not in lines:
        return []
    first = lines.index(HEADING)
    after = (number for number in range(first + 1, len(lines)) if lines[number] and not lines[number].startswith(" "))
    return lines[first : next(after, len(lines))]


def _split(docstring: str) -> tuple[str, str]:
    """What stands before and after the arguments' section, or where it would stand: before what is raised."""
    lines = inspect.cleandoc(docstring).splitlines()
    section = _section(lines)
    if section:
        first = lines.index(HEADING)
        last = first + len(section)
    else:
        first = last = next((number for number, line in enumerate(lines) if line == "Raises:"), len(lines))
    return "\n".join(lines[:first]).strip(), "\n".join(lines[last:]).strip()


def _format(texts: Mapping[str, str]) -> str:
    entries = [
        textwrap.fill(
            f"{name}: {text}", WIDTH, initial_indent=" " * 4, subsequent_indent=" " * 8, break_long_words=False,
            break_on_hyphens=False,
        )
        for name, text in texts.items()
    ]  # fmt: skip
    return "\n".join([HEADING, *entries])
