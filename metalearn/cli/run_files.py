"""Where a run lies on the disk: the folder that a checkpoint belongs to, and what is left of a command that failed."""

from __future__ import annotations

import os
import shlex
import shutil
from contextlib import suppress
from pathlib import Path

from metalearn.carried import carried_config, count_elements, read_checkpoint, read_entry
from metalearn.errors import CheckpointError

__all__ = [
    "NAMES",
    "discard",
    "find_checkpoint",
    "find_run_of",
    "format_continuation",
    "format_evaluation",
    "is_self_contained",
    "name_run",
]

NAMES = ("last", "best")


def find_checkpoint(name: str, runs: Path, trains: bool) -> Path:
    """The newest run's ``last.ckpt`` or ``best.ckpt`` below a folder.

    Args:
        name: ``"last"`` or ``"best"``.
        runs: the folder with ``version_0``, ``version_1``, ...
        trains: whether a run is to go on from there, which might as well begin.

    Raises:
        CheckpointError: no run there has one.
    """
    checkpoints = [path for path in runs.glob(f"version_*/checkpoints/{name}.ckpt") if _version(path) >= 0]
    if not checkpoints:
        raise CheckpointError(
            f"ckpt_path is {name!r}, but no run in {runs} has a {name}.ckpt; "
            + ("leave it out to train from the beginning, or name the file" if trains else "name the file")
        )
    return max(checkpoints, key=_version)


def find_run_of(checkpoint: str | Path) -> Path | None:
    """The folder of the run that wrote a checkpoint, if it is one of ours and can be written to."""
    path = Path(checkpoint)
    if len(path.parts) < 4:
        path = Path(os.path.abspath(path))
    folder = path.parent.parent
    is_run = path.parent.name == "checkpoints" and (folder / "config.yaml").is_file() and path.is_file()
    return folder if is_run and folder.name and os.access(folder, os.W_OK) else None


def format_continuation(checkpoint: Path) -> str:
    """The command that goes on from a run's last checkpoint."""
    return shlex.join(["python", "-m", "metalearn", "resume", str(checkpoint.parent.parent)])


def format_evaluation(checkpoint: Path) -> str:
    """The command that tests a checkpoint, with the run's own configuration where the carried one would be refused."""
    folder = find_run_of(checkpoint)
    words = ["python", "-m", "metalearn", "test"]
    if folder is not None and not is_self_contained(checkpoint):
        words += ["--config", str(folder / "config.yaml")]
    return shlex.join([*words, "--ckpt_path", str(checkpoint)])


def is_self_contained(checkpoint: Path) -> bool:
    """Whether a checkpoint's configuration names no classes but ours, so that it is built from the file alone."""
    try:
        contents = read_checkpoint(checkpoint)
        carried_config(read_entry(contents, checkpoint), count_elements(contents), checkpoint)
    except CheckpointError:
        return False
    return True


def name_run(config: Path) -> str:
    """What a run of a configuration is called: by the file, or by the run whose ``config.yaml`` it is."""
    is_run = config.name == "config.yaml" and config.parent.name.startswith("version_") and _number(config.parent) >= 0
    name = config.parent.parent.name if is_run else config.stem
    return "".join(sign if sign.isprintable() else "_" for sign in name or config.stem)[:100]


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
    return _number(checkpoint.parent.parent)


def _number(folder: Path) -> int:
    number = folder.name.removeprefix("version_")
    return int(number) if number.isdigit() else -1
