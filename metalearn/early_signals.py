"""A signal that comes while modules are still imported ends the command line at once, without a traceback.

The first lines of the package ask for it, so nothing heavy is imported here.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

__all__ = ["ENDING", "end_quietly_on_signals"]

ENDING = (signal.SIGINT, signal.SIGTERM)
"""What asks a process to end."""


def end_quietly_on_signals() -> None:
    """Handle signals where this process is the command line; as a library, leave them alone."""
    if _is_command_line() and threading.current_thread() is threading.main_thread():
        for signum in ENDING:
            if signal.getsignal(signum) in (signal.default_int_handler, signal.SIG_DFL):
                signal.signal(signum, _leave)


def _is_command_line() -> bool:
    if sys.argv[:1] == ["-m"]:  # while ``python -m NAME`` looks for NAME
        pairs = zip(sys.orig_argv, sys.orig_argv[1:], strict=False)
        return "metalearn" in [name for flag, name in pairs if flag == "-m"]
    return Path(sys.argv[0] if sys.argv else "").stem == "metalearn"


def _leave(signum: int, frame: FrameType | None) -> Any:
    os._exit(128 + signum)
