"""Checkpoints that are whole or not there, whatever ends the process that writes them."""

from __future__ import annotations

import glob
import io
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from metalearn.carried import read_checkpoint
from metalearn.errors import CheckpointError, suggest_space

try:
    import fcntl
except ImportError:  # Windows: what a killed process leaves there stays until someone deletes it
    fcntl = None  # type: ignore[assignment]

__all__ = ["AtomicCheckpointIO"]

SUFFIX = ".part"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place, and moves it there once it is on the disk: ``Trainer(plugins=AtomicCheckpointIO())``.

    Lightning writes into the folder for temporary files and moves from there; across file systems that is a copy, which a kill
    or a full disk leaves half done in the place of the checkpoint before it. Here the one before stays whole until then.

    Example:
        >>> import lightning as L
        >>> from metalearn import AtomicCheckpointIO
        >>> trainer = L.Trainer(plugins=AtomicCheckpointIO(), accelerator="cpu", logger=False)
        >>> type(trainer.strategy.checkpoint_io).__name__
        'AtomicCheckpointIO'
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write ``path`` as a whole. What earlier processes were killed in writing there is removed first.

        Raises:
            CheckpointError: it cannot be written; what was there before is unchanged, and nothing is left beside it.
        """
        if "://" in str(path):  # object stores have no half-written files
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(os.path.abspath(path))
        content = io.BytesIO()  # torch's own writer ends the process where a disk is full
        torch.save(checkpoint, content)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            _clear(target)
            _write(target, content.getbuffer())
        except OSError as error:
            kept = "; the one that was there before is whole" if target.is_file() else ""
            raise CheckpointError(
                f"checkpoint {path} cannot be written ({error.strerror or error}){kept}; {suggest_space(error)}, or "
                "write elsewhere: trainer.default_root_dir, or a callback's dirpath"
            ) from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read plain types and tensors on the CPU, whatever ``weights_only`` says.

        Raises:
            CheckpointError: see :func:`~metalearn.carried.read_checkpoint`.
        """
        return read_checkpoint(path)


def _write(target: Path, content: memoryview) -> None:
    part = target.with_name(f".{target.name[:200]}.{os.getpid()}{SUFFIX}")
    try:
        with part.open("wb") as file:
            with suppress(OSError):  # a file system without locks: then nobody can take the file for a leftover
                lock_file(file.fileno())
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    _sync_folder(target.parent)


def _clear(target: Path) -> None:
    """Remove what killed processes left. A file that is being written is locked, and stays."""
    for part in target.parent.glob(f".{glob.escape(target.name[:200])}.*{SUFFIX}"):
        with suppress(OSError), part.open("rb") as file:
            lock_file(file.fileno())
            part.unlink()


def lock_file(file: int) -> None:
    """Lock an open file until it is closed, or raise where another process has it."""
    if fcntl is None:
        raise OSError("no locks here")
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _sync_folder(folder: Path) -> None:
    """Make the move itself last, where folders can be synchronised."""
    with suppress(OSError):
        place = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(place)
        finally:
            os.close(place)
