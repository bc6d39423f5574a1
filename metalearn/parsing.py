"""What all subcommands share: a parser whose errors are one line, and objects whose own errors come out as they said them."""

from __future__ import annotations

import re
from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser

from metalearn.errors import ConfigError, MetalearnError

__all__ = ["Parser", "instantiate", "one_line", "own_error"]


class Parser(LightningArgumentParser):
    """Says what is wrong in one line instead of printing the usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise ConfigError(condense(message)) from ex


def instantiate(parser: LightningArgumentParser, given: Any) -> Any:
    """Build the objects that the arguments describe.

    Raises:
        MetalearnError: what a constructor found wrong, as it said it.
    """
    try:
        return parser.instantiate_classes(given)
    except (ValueError, TypeError) as error:
        raise own_error(error) from error


def own_error(error: BaseException) -> MetalearnError:
    """The error of ours that is the cause of another one, or that other one as one line."""
    origin = error
    while origin.__cause__ is not None and not isinstance(origin, MetalearnError):
        origin = origin.__cause__
    return origin if isinstance(origin, MetalearnError) else ConfigError(one_line(str(origin)))


def condense(message: str) -> str:
    """jsonargparse's account of every type that a value could have had, as one sentence on the value."""
    message = one_line(message)
    unknown = re.search(r"Option '([^']+)' is not accepted", message)
    if unknown:
        return f"option {unknown[1]!r} is not accepted by the chosen class; see --model.help CLASS or --data.help CLASS"
    if "any of the Union subtypes" not in message:
        return message
    inner = re.search(r"Errors: - (.+?) - Expected a <class 'NoneType'>", message)
    if inner and not inner[1].startswith(("Expected", "Parser key")):  # an inner parser has been here already
        return inner[1]
    where = ".".join(re.findall(r'Parser key "([^"]+)"', message)) or "a value"
    given = re.search(r"Given value: (?:NestedArg\(key='\w+', val=)?(.+?)\)?(?: - |$)", message)
    wanted = re.findall(r"Expected an? (?:<class '(\w+)'>|typing\.Literal\[([^\]]+)\])", message)
    kinds = ", ".join(dict.fromkeys(name or choices for name, choices in wanted if name != "NoneType"))
    return f"{where} is {given[1] if given else 'invalid'}, but it must be one of: {kinds}"


def one_line(message: str) -> str:
    """The message without line breaks."""
    return re.sub(r"\s+", " ", message).strip()
