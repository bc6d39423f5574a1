"""What a command prints where: on terminals without our characters, into pipes that close, and nothing before an error."""

from __future__ import annotations

import codecs
import contextlib
import errno
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

__all__ = ["HeldMessages", "close_output", "describe_os_error", "messages_above_bars", "plain_output"]

SPELLED = {"±": "+/-", "•": "*", "…": "...", "—": "-", "–": "-", "’": "'", "×": "x", "─": "-", "━": "-", "╸": "-", "╺": "-",
           "│": "|", "╭": "+", "╮": "+", "╰": "+", "╯": "+"}  # fmt: skip
LOGGERS = ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero", "lightning", "metalearn")


def _spell(error: UnicodeError) -> tuple[str, int]:
    """A codec's answer to characters that a terminal cannot show: their spelling, or their number."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    wrong = error.object[error.start : error.end]
    spelled = (SPELLED.get(each) or each.encode("unicode_escape", "surrogatepass").decode("ascii") for each in wrong)
    return "".join(spelled), error.end


codecs.register_error("metalearn.spelled", _spell)


@contextlib.contextmanager
def plain_output() -> Iterator[None]:
    """Print on any terminal: characters that its encoding lacks are spelled out; a closed output takes what is printed."""
    before, opened = {}, []
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the shell
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
            opened.append(name)
        elif hasattr(stream, "reconfigure") and hasattr(stream, "errors"):
            before[name] = (stream, stream.errors)
            stream.reconfigure(errors="metalearn.spelled")
    try:
        yield
    finally:
        for name in opened:
            getattr(sys, name).close()
            setattr(sys, name, None)
        for stream, errors in before.values():
            if not stream.closed:
                stream.reconfigure(errors=errors)


class _CurrentErrors:
    """Standard error as it is at the moment, which a bar turns so that messages stand above it."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


@contextlib.contextmanager
def messages_above_bars() -> Iterator[None]:
    """Let what libraries log go to standard error as it is when they do: handlers keep the one of their own beginning."""
    turned = []
    for name in LOGGERS:
        for handler in logging.getLogger(name).handlers:
            if type(handler) is logging.StreamHandler and handler.stream is sys.stderr:
                turned.append((handler, handler.stream))
                handler.setStream(_CurrentErrors())
    try:
        yield
    finally:
        for handler, stream in turned:
            handler.setStream(stream)


def close_output() -> None:
    """Let nothing more be printed to an output that nobody reads, not even when the interpreter ends."""
    for name in ("stdout", "stderr"):
        stream: Any = getattr(sys, name)
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class HeldMessages:
    """Holds what libraries log and warn until a run begins, so that a command that fails before says its one line alone."""

    def __init__(self) -> None:
        self._held: list[Callable[[], Any]] = []
        self._gates: list[tuple[logging.Handler, logging.Filter]] = []
        self._show: Any = None

    def hold(self) -> None:
        """Begin to hold."""
        handlers = {id(handler): handler for name in ("", *LOGGERS) for handler in logging.getLogger(name).handlers}
        for handler in (*handlers.values(), logging.lastResort):
            # what a host or a test captures is not what a user reads
            if handler is not None and type(handler) in (logging.StreamHandler, type(logging.lastResort)):
                gate = _Gate(handler, self._held)
                handler.addFilter(gate)
                self._gates.append((handler, gate))
        self._show = warnings.showwarning
        warnings.showwarning = self._keep_warning

    def release(self, drop: bool = False) -> None:
        """Say what is held, unless it is to be dropped, and hold no more."""
        if self._show is None:
            return
        for handler, gate in self._gates:
            handler.removeFilter(gate)
        warnings.showwarning, self._show = self._show, None
        held = [] if drop else list(self._held)
        self._held.clear()
        for say in held:
            say()

    def _keep_warning(self, *args: Any, **kwargs: Any) -> None:
        self._held.append(partial(self._show, *args, **kwargs))


class _Gate(logging.Filter):
    def __init__(self, handler: logging.Handler, held: list[Callable[[], Any]]) -> None:
        super().__init__()
        self._handler, self._kept = handler, held

    def filter(self, record: logging.LogRecord) -> bool:
        self._kept.append(partial(self._handler.handle, record))
        return False


def describe_os_error(error: OSError) -> str | None:
    """What the system refused, in words; ``None`` where that is no matter of a user's files."""
    remedies = {
        errno.ENOSPC: "free some space, or write elsewhere",
        errno.EDQUOT: "free some space, or write elsewhere",
        errno.ENAMETOOLONG: "shorten it",
        errno.EACCES: "change its permissions, or use another path",
        errno.EPERM: "change its permissions, or use another path",
        errno.EROFS: "use a path that can be written",
        errno.ENOENT: "correct the path",
        errno.ENOTDIR: "correct the path",
        errno.EISDIR: "correct the path",
        errno.ELOOP: "correct the link",
        errno.EEXIST: "use another path",
        errno.EINVAL: "correct the path",
        errno.EMFILE: "raise the limit of open files, or use fewer workers",
    }
    if error.errno not in remedies:
        return None
    name = error.filename if error.filename is not None else None
    if name is None and error.errno == errno.ENOENT:
        return "the working folder does not exist any more; change to one that does"
    if name is None:
        return f"the system refuses to write ({error.strerror}); {remedies[error.errno]}"
    path = os.fsdecode(name) if isinstance(name, (str, bytes)) else str(name)
    path = path if len(path) <= 120 else f"{path[:100]}... ({len(path)} characters)"
    return f"{path} cannot be used ({error.strerror}); {remedies[error.errno]}"
