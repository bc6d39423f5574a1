"""Where a command begins and ends: ``python -m metalearn COMMAND``."""

from __future__ import annotations

import logging
import os
import signal
import sys
import warnings
from collections.abc import Sequence

from metalearn.cli.allocator import keep_buffers
from metalearn.cli.commands import COMMANDS, Call, find_command
from metalearn.cli.interrupts import Interrupted, Signals
from metalearn.cli.output import take_output
from metalearn.cli.overview import format_versions, make_overview
from metalearn.cli.screen import print_screen
from metalearn.cli.terminal import HeldMessages, close_output, describe_os_error, messages_above_bars, plain_output
from metalearn.errors import MetalearnError
from metalearn.reports.text import join_lines

__all__ = ["main"]


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line; what a user can put right ends with one line and exit code 2.

    Args:
        args: what follows ``python -m metalearn``; ``None`` for the process's own arguments.
    """
    words = list(sys.argv[1:] if args is None else args)
    messages = HeldMessages()
    call = Call(words, Signals(), messages.release)
    keep_buffers()
    with plain_output(), call.signals.installed(whole=args is None):
        try:
            _run(call, messages, debug="--debug" in words, alone=args is None)
        except BaseException as error:
            if call.signals.signum is not None:
                sys.exit(_leave(call))  # whatever is raised after a signal comes of it
            if isinstance(error, BrokenPipeError):
                sys.exit(128 + signal.SIGPIPE)
            raise
        finally:
            close_output()


def _run(call: Call, messages: HeldMessages, debug: bool, alone: bool) -> None:
    try:
        call.words, output = take_output(call.words)
        call.words = call.words or ["--help"]
        if call.words[0] in ("-h", "--help", "--version"):
            if call.words[0] == "--version":
                print(format_versions())
            else:
                print_screen(make_overview())
            sys.exit(0)
        # a working folder that is gone is reported now: some libraries end the process at its first sum
        here = os.getcwd()
        if alone and here not in sys.path:
            # a user's own classes are here, where python -m looks and a script does not. The folder is named, since the parser
            # of a config enters the config's
            sys.path.append(here)
        with call.signals.loading():
            function = COMMANDS[find_command(call.words)].load()
        _quieten_libraries()
        if not debug:
            messages.hold()
        with output.directed(), messages_above_bars():
            report = function(call)
        output.say(report)
    except Exception as error:
        line = _describe(error)
        if debug or line is None:
            raise
        messages.release(drop=True)
        print(f"metalearn: error: {join_lines(line)}", file=sys.stderr)
        sys.exit(2)
    finally:
        messages.release()


def _leave(call: Call) -> int:
    """Say in one line what a signal has ended, and return the exit code."""
    if call.ending is not None:
        return int(call.ending.leave())
    stopped = Interrupted(call.signals.signum or signal.SIGINT)
    print(f"metalearn: stopped by {stopped}", file=sys.stderr, flush=True)
    return stopped.code


def _describe(error: Exception) -> str | None:
    """What is wrong that a user can put right; ``None`` where that is something else."""
    if isinstance(error, MetalearnError):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        # raised by hand for a package that an option needs; an import of the user's own that fails keeps its traceback
        return str(error) if error.name is None else None
    if isinstance(error, OSError):
        return describe_os_error(error)
    # a library that was not imported has raised nothing
    lightning = sys.modules.get("lightning.fabric.utilities.exceptions")
    return str(error) if lightning and isinstance(error, lightning.MisconfigurationException) else None


def _quieten_libraries() -> None:
    """Drop what says nothing about the run: advertisements, deprecations between libraries, and that a test saves nothing."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch"):
        for handler in (logger := logging.getLogger(name)).handlers:
            handler.addFilter(_is_no_tip)
        logger.addFilter(_is_no_tip)
    warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")
    warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`")
    warnings.filterwarnings("ignore", message="The number of training batches")  # a validation writes the log, too
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")  # a run that goes on
    warnings.filterwarnings("ignore", message="You requested to overfit but enabled")  # no loader of ours shuffles
    warnings.filterwarnings("ignore", message="It is recommended to use `self.log")  # our metrics are gathered
    warnings.filterwarnings(
        "ignore", message="Total length of `list` across ranks is zero"
    )  # no validation: said already
    warnings.filterwarnings("ignore", message=".*does not have many workers")  # tasks are drawn in milliseconds


NOTHING = ("Tip:", "TPU available", "HPU available", "`weights_only` was not set", "Found current_model_state")


def _is_no_tip(record: logging.LogRecord) -> bool:
    text = record.getMessage()
    return not any(part in text for part in NOTHING)
