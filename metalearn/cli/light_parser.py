"""Options of the commands that need no torch: one line for what is wrong, with what was meant."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import NoReturn

from metalearn.checks import find_nearest
from metalearn.errors import ConfigError

__all__ = ["LightParser"]


class LightParser(argparse.ArgumentParser):
    """argparse without abbreviations, which says what is wrong as an error of ours.

    Args:
        name: of the command.
        text: what it does.
        example: calls of it.
    """

    def __init__(self, name: str, text: str, example: str) -> None:
        super().__init__(
            prog=f"metalearn {name}", description=text, epilog=f"Examples:\n{example}", allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip

    def parse_args(self, args: Sequence[str] | None = None, namespace: None = None) -> argparse.Namespace:  # type: ignore[override]
        """The options.

        Raises:
            ConfigError: an option is unknown, or its value is missing or wrong.
        """
        options, rest = self.parse_known_args(args, namespace)
        if not rest:
            return options
        known = [name for action in self._actions for name in action.option_strings]
        near = find_nearest(rest[0].split("=")[0], known, 1)
        remedy = f"did you mean {near[0]}?" if near else f"see {self.prog} --help"
        raise ConfigError(f"{rest[0]} is no option of {self.prog}; {remedy}")

    def error(self, message: str) -> NoReturn:
        message = re.sub(r"^the following arguments are required: ", "it needs ", message)
        raise ConfigError(f"{self.prog}: {message}; see {self.prog} --help")
