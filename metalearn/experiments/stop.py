"""A request to stop that is kept until it suits: nothing is torn apart while a file is written or processes are started."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any

__all__ = ["StopRequest"]

SIGNALS = (signal.SIGINT, signal.SIGTERM)
PATIENCE = 0.25
"""Seconds after which another Ctrl-C is a second one: some senders deliver each signal twice."""


class StopRequest:
    """Within its block, Ctrl-C and SIGTERM are taken note of; :meth:`deliver` then lets whoever handled them before do so.

    Attributes:
        signum: the first signal, or ``None``.
        insists: whether a second Ctrl-C has come.

    Example:
        >>> from metalearn.experiments.stop import StopRequest
        >>> with StopRequest() as stop:
        ...     print(stop.asked)
        False
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self.insists = False
        self._since = 0.0
        self._before: dict[int, Any] = {}

    @property
    def asked(self) -> bool:
        """Whether a signal has come."""
        return self.signum is not None

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python can handle none
            self._before = {signum: signal.signal(signum, self._receive) for signum in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def deliver(self) -> None:
        """Raise the signal that has come again, if one has."""
        if self.signum is not None:
            signal.raise_signal(self.signum)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is None:
            self.signum, self._since = signum, time.monotonic()
        elif time.monotonic() - self._since > PATIENCE:
            self.insists = True
