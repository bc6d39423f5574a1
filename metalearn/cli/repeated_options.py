"""The options that ``seeds`` and ``sweep`` share; what they do not know belongs to ``fit``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from metalearn.checks import find_nearest, quote_value
from metalearn.cli.parse_errors import explain
from metalearn.cli.repeats import drop_repeats
from metalearn.cli.shipped import DEFAULT_CONFIG
from metalearn.errors import ConfigError

__all__ = ["Options", "Request", "read_count", "read_request"]

TAKEN = {
    "config": "name the config as the first word",
    "run_name": "use --output for the folder",
    "trainer.default_root_dir": "use --output for the folder",
    "ckpt_path": "the same command goes on by itself",
}
"""Options of ``fit`` that are not the user's here, and what to do instead."""
TOP = ("advise", "model", "data", "trainer", "test_after_fit", "seed_everything", "start_from", "weights_only")
"""Options of ``fit`` without a dot."""


class Options(argparse.ArgumentParser):
    """The options of such a command. What they do not know belongs to ``fit``.

    Args:
        name: of the command.
        text: what it does.
        epilog: what follows the options in its help.
    """

    def __init__(self, name: str, text: str, epilog: str) -> None:
        super().__init__(
            prog=f"metalearn {name}", usage=f"metalearn {name} [CONFIG] [options] [options of fit]", description=text,
            epilog=epilog, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        self.add_argument("--processes", metavar="N", help="trainings at a time; they share the cores")
        self.add_argument("--output", metavar="DIR", help=f"the folder of it all; default: runs/CONFIG_{name}")

    def error(self, message: str) -> NoReturn:
        cause = sys.exc_info()[1]
        raise explain(self, message, cause) from cause


@dataclass(frozen=True)
class Request:
    """What a user asks of such a command.

    Attributes:
        options: its own.
        config: name or path of the configuration.
        words: the options of ``fit`` beside it, each once.
    """

    options: argparse.Namespace
    config: str
    words: list[str]

    @property
    def fit(self) -> list[str]:
        """What follows ``metalearn fit``."""
        return ["--config", self.config, *self.words]

    @property
    def set_names(self) -> set[str]:
        """The options of ``fit`` that the user has set."""
        return {_name(word) for word in self.words if word.startswith("--")}


def read_request(parser: Options, args: Sequence[str], taken: Mapping[str, str] | None = None) -> Request:
    """Read a command line.

    Args:
        parser: of the command's own options.
        args: what follows the command.
        taken: options of ``fit`` that are not the user's here either, and what to do instead.

    Raises:
        ConfigError: an option is unknown or is not the user's, or a value is missing.
    """
    words = list(args)
    config = words.pop(0) if words and not words[0].startswith("-") else DEFAULT_CONFIG
    options, rest = parser.parse_known_args(words)
    own = [option.removeprefix("--") for action in parser._actions for option in action.option_strings]
    taken = {**TAKEN, **(taken or {})}
    for word in rest:
        name = "config" if word.startswith("-c") else _name(word)
        if word.startswith("-") and name in taken:
            raise ConfigError(f"option {word.split('=')[0]} is not taken by {parser.prog}; {taken[name]}")
        if word.startswith("--") and "." not in name and name not in TOP:
            near = find_nearest(name, [*own, *TOP], 2)
            remedy = (
                f"did you mean {' or '.join(f'--{option}' for option in near)}?"
                if near
                else "see --help for those that do"
            )
            raise ConfigError(f"option {word.split('=')[0]} does not exist; {remedy}")
    return Request(options, config, drop_repeats(rest))


def read_count(name: str, text: str) -> int:
    """A whole number of at least 1.

    Raises:
        ConfigError: it is none.
    """
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise ConfigError(
            f"{name} is {quote_value(text)}, but it must be a whole number of at least 1; write --{name} 2"
        )
    return int(text)


def _name(word: str) -> str:
    return word.split("=")[0].removeprefix("--").removesuffix("+")
