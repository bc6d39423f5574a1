"""Where a run writes."""

from __future__ import annotations

from pathlib import Path

import lightning as L

__all__ = ["find_run_folder"]


def find_run_folder(trainer: L.Trainer) -> Path:
    """The logger's folder, or the trainer's root. All ranks must call it, since they agree on it."""
    return Path(trainer.log_dir or trainer.default_root_dir)
