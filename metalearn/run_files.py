"""Where a run lies on the disk: the folder that a checkpoint belongs to, and what is left of a command that failed."""

from __future__ import annotations

import os
import shlex
import shutil
from contextlib import suppress
from pathlib import Path

from metalearn.errors import CheckpointError

__all__ = ["continuation", "discard", "find_checkpoint", "run_folder"]

NAMES = ("last", "best")


def find_checkpoint(given: str, runs: Path) -> Path:
    """The newest run's ``last.ckpt`` or ``best.ckpt`` below a folder.

    Args:
        given: ``"last"`` or ``"best"``.
        runs: the folder with ``version_0``, ``version_1``, ...

    Raises:
        CheckpointError: no run there has one.
    """
    found = [path for path in runs.glob(f"version_*/checkpoints/{given}.ckpt") if _version(path) >= 0]
    if not found:
        raise CheckpointError(
            f"ckpt_path is {given!r}, but no run in {runs} has a {given}.ckpt; leave it out to train from the beginning, or name "
            "the file"
        )
    return max(found, key=_version)


def run_folder(checkpoint: str | Path) -> Path | None:
    """The folder of the run that wrote a checkpoint, if it is one of ours and can be written to."""
    path = Path(checkpoint)
    if len(path.parts) < 4:
        path = Path(os.path.abspath(path))
    folder = path.parent.parent
    is_run = path.parent.name == "checkpoints" and (folder / "config.yaml").is_file() and path.is_file()
    return folder if is_run and folder.name and os.access(folder, os.W_OK) else None


def continuation(checkpoint: Path) -> str:
    """The command that goes on from a checkpoint of a run."""
    config = checkpoint.parent.parent / "config.yaml"
    words = ["python", "-m", "metalearn", "fit", "--config", str(config), "--ckpt_path", str(checkpoint)]
    return shlex.join(words)


def discard(folder: Path) -> None:
    """Remove a run's new folder, and those above it that it leaves empty, unless a checkpoint is in it."""
    if any(folder.rglob("*.ckpt")):
        return
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):  # others' runs are in there
        for above in (folder.parent, folder.parent.parent):
            if above != Path("."):
                above.rmdir()


def _version(checkpoint: Path) -> int:
    number = checkpoint.parent.parent.name.removeprefix("version_")
    return int(number) if number.isdigit() else -1
