"""What goes to standard output: everything, one JSON document, or the result alone."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from metalearn.errors import ConfigError

if TYPE_CHECKING:
    from metalearn.reports.summary import Report

__all__ = ["OPTIONS", "Output", "take_output"]

OPTIONS = {
    "--json": "Print the summary as JSON, and messages on standard error.",
    "--quiet": "Print the result and errors alone.",
    "--debug": "Show the traceback of an error.",
}
"""What every command takes."""
ASKS_HELP = ("-h", "--help", "--version")


@dataclass(frozen=True)
class Output:
    """How a command speaks.

    Attributes:
        json: one JSON document on standard output, and messages and progress on standard error.
        quiet: neither messages nor progress.
    """

    json: bool = False
    quiet: bool = False

    @contextlib.contextmanager
    def directed(self) -> Iterator[None]:
        """Within it what is printed goes where progress belongs, that of processes that are started there as well."""
        with contextlib.ExitStack() as stack:
            if self.quiet:
                stack.enter_context(_silent_libraries())
                stack.enter_context(_send_to(stack.enter_context(open(os.devnull, "w", encoding="utf-8"))))
            elif self.json:
                stack.enter_context(_send_to(sys.stderr))
            yield

    def say(self, report: Report | None) -> None:
        """Print what a command returns."""
        if report is None:
            return
        if self.json:
            print(json.dumps(report.as_dict(), indent=2, allow_nan=False))
        elif not self.quiet:
            report.show()
        elif report.result:
            print(report.result)


def take_output(words: Sequence[str]) -> tuple[list[str], Output]:
    """The arguments without those that say how a command speaks, and how it speaks.

    A call that asks for help speaks as ever.

    Raises:
        ConfigError: an option that takes no value has one.
    """
    for word in words:
        name, equals, _ = word.partition("=")
        if equals and name in OPTIONS:
            raise ConfigError(f"{name} takes no value, but {word} gives it one; write {name}, or leave it out")
    rest = [word for word in words if word not in OPTIONS]
    if any(word.split("=")[0].endswith(".help") or word in ASKS_HELP or "--print_" in word[:8] for word in words):
        return rest, Output()
    return rest, Output("--json" in words, "--quiet" in words)


@contextlib.contextmanager
def _send_to(stream: TextIO) -> Iterator[None]:
    """Let all that is printed to standard output go to another stream, also by C code and by processes started within."""
    output, handle = sys.stdout, -1
    with contextlib.suppress(OSError, ValueError, AttributeError):  # what captures output has no descriptor
        if output.fileno() == 1:
            output.flush()
            handle = os.dup(1)
            os.dup2(stream.fileno(), 1)
    try:
        with contextlib.redirect_stdout(stream):
            yield
    finally:
        if handle >= 0:
            os.dup2(handle, 1)
            os.close(handle)


@contextlib.contextmanager
def _silent_libraries() -> Iterator[None]:
    """Drop warnings and what is logged, but for errors."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
