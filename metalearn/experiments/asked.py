"""What a user asked for, as it was typed: the command, its configurations, and the options beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Asked", "read_words"]

PLACES = ("run_name", "ckpt_path", "trainer.default_root_dir")
"""Options that say where a run reads and writes, and not what it does."""


@dataclass(frozen=True)
class Asked:
    """A command line.

    Attributes:
        command: the subcommand.
        arguments: all that followed ``python -m metalearn``.
        configs: the configurations, as they were named.
        changes: the options beside them, as they were written; the last one of a name counts, ``+=`` adds.

    Example:
        >>> from metalearn.experiments.asked import read_words
        >>> words = ["fit", "--config", "mine.yaml", "--model.inner_lr", "0.1"]
        >>> read_words(words, commands=["fit", "test"], default="glyphs.yaml").changes
        {'model.inner_lr': '0.1'}
    """

    command: str
    arguments: list[str]
    configs: list[str]
    changes: dict[str, str]


def read_words(words: Sequence[str], commands: Sequence[str], default: str) -> Asked:
    """Read a command line that the parser takes.

    Args:
        words: what follows ``python -m metalearn``.
        commands: the names of which one is the command.
        default: the configuration of a ``fit`` that names neither configuration, model nor data.
    """
    command = next((word for word in words if word in commands), "")
    configs: list[str] = []
    changes: dict[str, str] = {}
    waiting = list(words)
    while waiting:
        flag, value = _take(waiting)
        name = flag.removeprefix("--")
        if flag in ("--config", "-c"):
            configs.append(value)
        elif flag.startswith("--") and name not in PLACES:
            changes.pop(name, None)
            changes[name] = value
    if command == "fit" and not configs and not {"model", "data"} & set(changes):
        configs.append(default)
    return Asked(command, list(words), configs, changes)


def _take(waiting: list[str]) -> tuple[str, str]:
    """The next option and its value, taken off; a word that is no option comes alone."""
    word = waiting.pop(0)
    if word.startswith("-c") and len(word) > 2:
        return "-c", word[2:].removeprefix("=")
    flag, equals, value = word.partition("=")
    if not flag.startswith("-") or equals:
        return flag.removesuffix("+") if equals and flag.endswith("+") else flag, value
    takes_next = bool(waiting) and not waiting[0].startswith("--")
    return flag, waiting.pop(0) if takes_next else "true"
