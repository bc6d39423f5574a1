"""What ``seeds`` and ``sweep`` do alike: check the training that they repeat, and find room for the processes that run it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from metalearn.checks import quote_value
from metalearn.cli.rehearsal import Rehearsal, rehearse
from metalearn.cli.repeated_options import Request, read_count
from metalearn.datamodules.episodes.base import EpisodicDataModule
from metalearn.datamodules.levels.base import BilevelDataModule
from metalearn.errors import ConfigError
from metalearn.experiments.board import Board
from metalearn.experiments.parallel import Processes, count_cores

__all__ = ["choose_folder", "make_processes", "prepare", "read_monitor", "read_steps"]

MOST = 8
"""Processes at once, where nothing is said."""


def prepare(words: Sequence[str]) -> Rehearsal:
    """Check a training that is to be run, and make its data ready once, before processes ask for them all at once.

    Args:
        words: the options of ``fit``.

    Raises:
        MetalearnError: an option is wrong, or the data are missing or do not give such tasks.
    """
    rehearsal = rehearse(words)
    logger = rehearsal.options["trainer"].get("logger")
    if logger not in (None, True):
        raise ConfigError(
            f"trainer.logger is {quote_value(logger)}, but what a run measures is read from its metrics.csv; leave it out"
        )
    if isinstance(rehearsal.data, EpisodicDataModule):
        rehearsal.data.ready()
    elif isinstance(rehearsal.data, BilevelDataModule):
        rehearsal.data.setup()
    return rehearsal


def read_monitor(rehearsal: Rehearsal) -> tuple[str, str]:
    """The validation measure by which a run's best checkpoint is chosen, and ``"max"`` or ``"min"``."""
    monitor = getattr(rehearsal.model, "checkpoint_monitor", None)
    return (str(monitor[0]), str(monitor[1])) if monitor is not None else ("val/loss", "min")


def read_steps(rehearsal: Rehearsal) -> int | None:
    """The outer steps of a training, where their number ends it."""
    steps = rehearsal.options["trainer"].get("max_steps", -1)
    return int(steps) if steps and int(steps) > 0 else None


def choose_folder(request: Request, rehearsal: Rehearsal, kind: str) -> Path:
    """Where it all is written."""
    output = request.options.output
    if output is not None and not output.strip():
        raise ConfigError("output is empty, but it must name a folder; write --output DIR, or leave it out")
    return Path(output) if output else Path("runs") / f"{rehearsal.name}_{kind}"


def make_processes(request: Request, rehearsal: Rehearsal, board: Board, jobs: int) -> Processes:
    """The processes that were asked for, or as many as the machine has room for."""
    devices = list_devices(rehearsal.options["trainer"])
    asked = request.options.processes
    room = min(max(jobs, 1), count_cores(), len(devices) or MOST)
    count = room if asked is None else read_count("processes", asked)
    return Processes(count, board, devices if len(devices) > 1 else ())


def list_devices(trainer: Mapping[str, Any]) -> list[str]:
    """The CUDA devices that trainings may use, by name; none on a CPU."""
    uses = str(trainer.get("accelerator", "auto")) in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    if not uses or str(trainer.get("devices", "auto")) not in ("auto", "1"):
        return []
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return visible or [str(number) for number in range(torch.cuda.device_count())]
