"""Where a command begins and ends: ``python -m metalearn {fit,validate,test,predict,data,study}``."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from lightning.fabric.utilities.exceptions import MisconfigurationException

from metalearn.cli import data, predict, study
from metalearn.cli.allocator import keep_buffers
from metalearn.cli.arguments import check_command, prepare_arguments
from metalearn.cli.ending import Ending
from metalearn.cli.lightning_cli import MetaCLI
from metalearn.cli.parse_errors import join_lines
from metalearn.cli.terminal import HeldMessages, close_output, describe_os_error, plain_output
from metalearn.errors import MetalearnError

__all__ = ["main"]


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line; what a user can put right ends with one line and exit code 2.

    Args:
        args: what follows ``python -m metalearn``; ``None`` for the process's own arguments.
    """
    words = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"] or ["--help"]
    if args is None and "" not in sys.path:
        sys.path.append(
            ""
        )  # classes of a user's own stand in the working folder; python -m looks there, a script does not
    _quieten_libraries()
    keep_buffers()
    ending = Ending()
    with plain_output(), ending.signals.installed(whole=args is None):
        try:
            _run(words, debug, ending)
        except BaseException as error:
            if ending.signals.signum is not None:
                sys.exit(ending.leave())  # whatever is raised after a signal comes of it
            if isinstance(error, BrokenPipeError):
                sys.exit(128 + signal.SIGPIPE)
            raise
        finally:
            close_output()


def _run(args: list[str], debug: bool, ending: Ending) -> None:
    messages = HeldMessages()
    if not debug:
        messages.hold()
    try:
        _dispatch(args, ending, messages.release)
    except (MetalearnError, MisconfigurationException, OSError, ModuleNotFoundError) as error:
        line = _describe(error)
        if debug or line is None:
            raise
        messages.release(drop=True)
        print(f"metalearn: error: {join_lines(line)}", file=sys.stderr)
        sys.exit(2)
    finally:
        messages.release()


def _describe(error: Exception) -> str | None:
    """What is wrong that a user can put right; ``None`` where that is something else."""
    if isinstance(error, MetalearnError):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        # raised by hand for a package that an option needs; an import of the user's own that fails keeps its traceback
        return str(error) if error.name is None else None
    return describe_os_error(error) if isinstance(error, OSError) else str(error)


def _dispatch(args: list[str], ending: Ending, release_messages: Callable[[], None]) -> None:
    os.getcwd()  # a working folder that is gone is reported now: some libraries end the process at its first sum
    check_command(args)
    command, *options = args
    if command == "predict" and any(arg.split("=")[0] in predict.OPTIONS for arg in args):
        predict.run(options)
    elif command == "data":
        data.run(options or ["--help"])
    elif command == "study":
        study.run(options or ["--help"])
    else:
        with tempfile.TemporaryDirectory(prefix="metalearn-") as scratch:
            arguments, name = prepare_arguments(args, Path(scratch))
            MetaCLI(arguments, name, ending, release_messages)


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
