"""A signal that comes while modules are still imported ends the command line at once, without a traceback.

The command line begins with it, so nothing heavy is imported here.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

__all__ = ["ENDING", "end_quietly_on_signals"]

ENDING = (signal.SIGINT, signal.SIGTERM)
"""What asks a process to end."""


def end_quietly_on_signals() -> None:
    """Let both signals end this process without a word, unless somebody handles or ignores them already."""
    if threading.current_thread() is threading.main_thread():
        for signum in ENDING:
            if signal.getsignal(signum) in (signal.default_int_handler, signal.SIG_DFL):
                signal.signal(signum, _leave)


def _leave(signum: int, frame: FrameType | None) -> Any:
    os._exit(128 + signum)
