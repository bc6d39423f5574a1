"""How SIGINT and SIGTERM end the command line: at a step's end where a model is trained, at once elsewhere."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from metalearn.early_signals import ENDING

__all__ = ["RELAYED", "Interrupted", "Signals"]

RELAYED = {getattr(signal, "SIGUSR1", None): signal.SIGINT, getattr(signal, "SIGUSR2", None): signal.SIGTERM}
"""By what a process of a run tells the others which signal it has received: nobody takes these for a second Ctrl-C."""

PATIENCE = 0.25
"""Seconds after which another Ctrl-C is a second one: some senders deliver each signal twice."""

GRACE = 30.0
"""Seconds that a process has to end after it has stopped, before it is ended: a peer may be gone, or an exception swallowed."""


class Interrupted(BaseException):
    """A signal has ended the run; no ``Exception``, so that nothing takes it for a failure.

    Attributes:
        signum: the signal.
        code: the exit code that shells give a process that it ended.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum
        self.code = 128 + signum


class Signals:
    """What SIGINT and SIGTERM do to a process: the first asks it to end, a second Ctrl-C ends it at once.

    Attributes:
        signum: the signal that asked first, or ``None``.
        deferred: whether someone looks at :attr:`signum` after every step; else the signal raises :class:`Interrupted`.
        forward: sends a signal on to the other processes of the run.
        kill: ends the processes that this one has started.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self.deferred = False
        self.forward: Callable[[int], None] = _nobody
        self.kill: Callable[[int], None] = _nobody
        self._owner = os.getpid()
        self._whole = self._loads = False
        self._since = 0.0
        self._watch: threading.Timer | None = None

    @contextmanager
    def installed(self, whole: bool) -> Iterator[Signals]:
        """Handle both signals until the block ends. Does nothing outside the main thread, where Python cannot.

        Args:
            whole: the process ends with the block; else it has more to do, and what has been stopped no longer ends it.
        """
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        self._whole = whole
        before = {signum: signal.getsignal(signum) for signum in (*ENDING, *RELAYED) if signum is not None}
        self.handle()
        try:
            yield self
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)
            if self._watch is not None and not whole:
                self._watch.cancel()

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Let a signal end the process at once until the block ends: what is imported there may swallow an exception.

        Where the process has more to do than this command, the signal raises :class:`Interrupted` there, too.
        """
        self._loads = self._whole
        try:
            yield
        finally:
            self._loads = False

    def handle(self) -> None:
        """Handle both signals from now on."""
        if threading.current_thread() is threading.main_thread():
            for signum in ENDING:
                signal.signal(signum, self._receive)

    def listen(self) -> None:
        """Take what other processes of the run relay, too."""
        if threading.current_thread() is threading.main_thread():
            for signum in RELAYED:
                if signum is not None:
                    signal.signal(signum, self._receive)

    def stop(self, signum: int) -> None:
        """Raise :class:`Interrupted`, and see to it that the process ends even if others hold it up."""
        self.signum, self.deferred = signum, False
        self._watch = threading.Timer(GRACE, self._end, (signum,))
        self._watch.daemon = True
        self._watch.start()
        raise Interrupted(signum)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:  # a forked worker: Ctrl-C reaches the whole group, and the owner sees to it
            if signum == signal.SIGTERM:
                signal.signal(signum, signal.SIG_DFL)
                os.kill(os.getpid(), signum)
            return
        relayed, signum = signum in RELAYED, RELAYED.get(signum, signum)
        now = time.monotonic()
        if self.signum is not None:
            if signum == signal.SIGINT and not relayed and now - self._since > PATIENCE:
                self._end(signum)
            return
        self.signum, self._since = signum, now
        if self._loads:
            self._end(signum)
        if not self.deferred:
            self.forward(signum)
            self.stop(signum)

    def _end(self, signum: int) -> None:
        self.kill(signal.SIGTERM if sys.platform == "win32" else signal.SIGKILL)
        if os.isatty(1):
            os.write(1, b"\x1b[?25h")  # a progress bar may have hidden the cursor
        os._exit(128 + signum)


def _nobody(signum: int) -> None:
    """There are no other processes."""
