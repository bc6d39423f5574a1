"""The process of one case of a study: ``python -m metalearn.studies.work FUNCTION ARGUMENTS PATH THREADS``."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import torch

from metalearn.errors import MetalearnError
from metalearn.studies.cases import ShareFile, run_case
from metalearn.studies.results import say_execution_once

__all__ = ["main"]


def main(words: Sequence[str]) -> int:
    """Run the case, and return the exit code: 2 for what a user can put right, 130 where a signal has ended it."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, _stop)  # a process that was started in the background ignores SIGINT
    function, arguments, path, threads = words
    torch.set_num_threads(int(threads))
    share = ShareFile(Path(path).with_name("share"))
    try:
        with say_execution_once():
            run_case(function, json.loads(arguments), Path(path), share.note)
    except MetalearnError as error:
        print(f"metalearn: error: {error}")
        return 2
    except KeyboardInterrupt:
        return 130
    finally:
        share.remove()
    return 0


def _stop(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
