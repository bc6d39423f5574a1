"""What all subcommands share: a parser whose errors are one line, and objects whose own errors come out as they said them."""

from __future__ import annotations

import argparse
import re
import warnings
from enum import Enum
from numbers import Real
from typing import Any, NoReturn

import yaml
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser

from metalearn.cli.layouts import show_class, show_parser
from metalearn.cli.parse_errors import explain
from metalearn.cli.screen import Screen, print_screen
from metalearn.cli.stray_options import explain_stray
from metalearn.cli.type_words import import_classes
from metalearn.errors import ConfigError, MemoryLimitError, MetalearnError
from metalearn.reports.text import join_lines

__all__ = ["Parser", "find_own_error", "instantiate"]

UNWRITTEN = "Unable to serialize instance"
"""How jsonargparse begins the text that it writes in place of a value."""
LEFT_OUT = object()
"""In place of a value that YAML has no form for."""


class Parser(LightningArgumentParser):
    """Says what is wrong in one line instead of printing the usage, and takes no option for another that begins like it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        import_classes()
        self._of_class: tuple[Any, str] | None = None
        super().__init__(*args, **{"prog": "metalearn", **kwargs, "allow_abbrev": False})

    def add_class_arguments(self, theclass: Any, nested_key: str | None = None, *args: Any, **kwargs: Any) -> Any:
        """The arguments of a class; the parser that shows the help of one has no others."""
        self._of_class = (theclass, nested_key or "")
        return super().add_class_arguments(theclass, nested_key, *args, **kwargs)

    def parse_args(self, args: Any = None, *others: Any, **options: Any) -> Any:
        """Parse the arguments; an option that does not exist is met before any value that stands behind it."""
        if not any(isinstance(action.choices, dict) for action in self._actions):
            for word in args or ():
                name = word.split("=")[0]
                if re.fullmatch(r"--\w+", name) and name not in self._option_string_actions:
                    raise explain_stray(name, [option for option in self._option_string_actions if option[:2] == "--"])
        return super().parse_args(args, *others, **options)

    def make_screen(self) -> Screen:
        """What ``--help`` prints."""
        if self._of_class is not None and (self.description or "").startswith("Help for --"):
            return show_class(self._of_class[0], self._actions, self._of_class[1])
        return show_parser(self, self._action_groups)

    def format_help(self, formatter: argparse.HelpFormatter | None = None) -> str:
        """The help without colours, as wide as the terminal."""
        return self.make_screen().format()

    def print_help(self, file: Any = None) -> None:
        """Print the help, in colours where a terminal shows them."""
        print_screen(self.make_screen(), file)

    def add_function_arguments(self, *args: Any, **kwargs: Any) -> Any:
        """The arguments of a function that makes a network; jsonargparse 4.53 passes it a keyword that it does not take."""
        kwargs.pop("linked_targets", None)
        return super().add_function_arguments(*args, **kwargs)

    def dump(self, namespace: Namespace, *args: Any, **kwargs: Any) -> str:
        """The options as YAML, which gives the same ones when it is read.

        A default such as Timer's interval, which YAML has no form for, is the text that it is. An argument whose type is an
        abstract one, such as ``numbers.Number``, has the value that was given. A default that is an object is left out.
        """
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=rf"\s*{UNWRITTEN}")
            written: str = super().dump(_plain(namespace), *args, **kwargs)
        if UNWRITTEN not in written:
            return written
        return yaml.safe_dump(_write_values(yaml.safe_load(written), namespace), sort_keys=False, allow_unicode=True)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise explain(self, message, ex) from ex


def _write_values(written: Any, values: Any) -> Any:
    """What jsonargparse wrote, with the values themselves where it had no form for them.

    Args:
        written: as YAML gives it back.
        values: what was to be written.
    """
    if isinstance(written, dict) and isinstance(values, Namespace):
        mended = {name: _write_values(each, getattr(values, name, each)) for name, each in written.items()}
        return {name: each for name, each in mended.items() if each is not LEFT_OUT}
    if isinstance(written, dict) and isinstance(values, dict):
        mended = {name: _write_values(each, values.get(name, each)) for name, each in written.items()}
        return LEFT_OUT if any(each is LEFT_OUT for each in mended.values()) else mended
    if isinstance(written, list) and isinstance(values, (list, tuple)) and len(written) == len(values):
        listed = [_write_values(each, value) for each, value in zip(written, values, strict=True)]
        return LEFT_OUT if any(each is LEFT_OUT for each in listed) else listed
    if isinstance(written, str) and written.startswith(UNWRITTEN):
        if type(values) in (bool, int, float, str):
            return values
        return float(values) if isinstance(values, Real) else LEFT_OUT
    return written


def _plain(value: Any) -> Any:
    """A copy of nested options in which enumerated text is text."""
    if isinstance(value, Namespace):
        return Namespace({name: _plain(each) for name, each in vars(value).items()})
    if type(value) is dict:
        return {name: _plain(each) for name, each in value.items()}
    if type(value) is list:
        return [_plain(each) for each in value]
    return str(value.value) if isinstance(value, Enum) and isinstance(value, str) else value


def instantiate(parser: LightningArgumentParser, config: Any) -> Any:
    """Build the objects that the arguments describe.

    Raises:
        MetalearnError: what a constructor found wrong, as it said it.
    """
    try:
        return parser.instantiate_classes(config)
    except (ValueError, TypeError) as error:
        raise find_own_error(error) from error


def find_own_error(error: BaseException) -> BaseException:
    """The error of ours that is the cause of another one; a constructor's complaint about a value as one line.

    What is neither is no mistake of the user's, and comes back as it is.
    """
    origin = error
    while origin.__cause__ is not None and not isinstance(origin, MetalearnError):
        origin = origin.__cause__
    if isinstance(origin, (RuntimeError, MemoryError)) and any(
        sign in str(origin) for sign in ("not enough memory", "allocate")
    ):
        return MemoryLimitError(
            "the network does not fit into memory; lower its sizes, such as hidden, image_size or ways"
        )
    if isinstance(origin, (MetalearnError, MisconfigurationException)) or not isinstance(
        origin, (ValueError, TypeError)
    ):
        return origin
    return ConfigError(join_lines(str(origin)))
